"""Fixtures that tests of the library and of the node share: a chain process, a network of five
members, a running node, a running Kubo, a small sealed bundle."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before any test imports eth_account or py_ecc by itself, which would raise the recursion limit for all tests.
import usufruct.ledger.accounts  # noqa: F401
from bundle_fixture import SmallBundle, small_bundle
from chain_fixture import Consortium, running_chain
from kubo_fixture import Kubo, new_kubo
from lineage_fixture import Scene, released_scene
from node_fixture import found_home, running_node
from usufruct.home import Home

# A slow machine is not a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def chain_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_chain(tmp_path_factory.mktemp("chain")) as url:
        yield url


@pytest.fixture(scope="session")
def consortium(chain_url: str) -> Consortium:
    return Consortium(chain_url)


@pytest.fixture(scope="session")
def bundle() -> SmallBundle:
    return small_bundle()


@pytest.fixture(scope="module")
def scene(chain_url: str, bundle: SmallBundle, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A release with its lineage."""
    return released_scene(chain_url, bundle, tmp_path_factory.mktemp("index"))


@pytest.fixture(scope="session")
def node_home(chain_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Home of an organisation whose node runs."""
    home = found_home(tmp_path_factory.mktemp("node") / "north", chain_url)
    with running_node(home):
        yield home


@pytest.fixture(scope="session")
def one_kubo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubo]:
    made = new_kubo(tmp_path_factory.mktemp("kubo"))
    with made.running():
        yield made


@pytest.fixture
def kubo(one_kubo: Kubo) -> Iterator[Kubo]:
    """The shared private daemon, empty before and after."""
    one_kubo.forget()
    yield one_kubo
    one_kubo.forget()
