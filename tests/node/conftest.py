"""Fixture that tests of the index and of its queries share."""

import pytest
from ledger_story import Story, told_on


@pytest.fixture(scope="session")
def story(chain_url: str) -> Story:
    return told_on(chain_url)
