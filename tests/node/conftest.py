"""Fixtures that tests of the index, of its queries and of roles share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_story import Story, told_on

from usufruct_node.index import Index, catch_up


@pytest.fixture(scope="session")
def story(chain_url: str) -> Story:
    return told_on(chain_url)


@pytest.fixture
def index(story: Story, tmp_path: Path) -> Iterator[Index]:
    built = Index(tmp_path / "index.db")
    catch_up(built, story.net.reader)
    yield built
    built.close()
