"""Fixtures that tests of the library and of the node share: one chain process, one network of five members."""

from collections.abc import Iterator

import pytest
from chain_fixture import Consortium, running_chain


@pytest.fixture(scope="session")
def chain_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_chain(tmp_path_factory.mktemp("chain")) as url:
        yield url


@pytest.fixture(scope="session")
def consortium(chain_url: str) -> Consortium:
    return Consortium(chain_url)
