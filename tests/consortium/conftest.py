"""One network of five real validators for all tests of this folder. Skipped, loudly, where Go is missing."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from governed_fixture import GovernedConsortium, governed_consortium
from validators_fixture import TestValidators, running_validators

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if shutil.which("go") is not None:
        return
    reason = "Go is missing: the validators cannot be built, so nothing was tested on five validators"
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.skip(reason=reason))
    if ours:
        warnings.warn(f"{len(ours)} tests skipped. {reason}", stacklevel=1)


@pytest.fixture(scope="module")
def five_validators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestValidators]:
    with running_validators(tmp_path_factory.mktemp("consortium")) as found:
        yield found


@pytest.fixture
def validators(five_validators: TestValidators) -> Iterator[TestValidators]:
    """The shared network, all of it well; a test that kills one gets it back afterwards."""
    five_validators.make_whole()
    yield five_validators
    five_validators.make_whole()


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GovernedConsortium]:
    """A network founded on validators of its own, whose lists its council rules; gone after the file: idle ones cost, too."""
    with governed_consortium(tmp_path_factory.mktemp("governed")) as found:
        yield found
