"""Whether one more copy fits beside those that are here, whole or not. Real stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chain_fixture import word
from usufruct.content import EmbeddedBlockStore
from usufruct.errors import StoreFullError
from usufruct.records import ArtifactId
from usufruct_node.custody_store import CustodyStore, Held
from usufruct_node.roles.room import Room, held_pin

FIRST, SECOND = ArtifactId(word()), ArtifactId(word())


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[CustodyStore, EmbeddedBlockStore]]:
    with closing(CustodyStore(tmp_path / "node.db")) as custody, EmbeddedBlockStore(tmp_path) as blocks:
        for artifact_id in (FIRST, SECOND):
            custody.hold(Held(artifact_id=artifact_id, blocks=3, size_bytes=0))
        yield custody, blocks


def test_a_copy_that_is_being_fetched_counts_as_what_it_will_be(
    stores: tuple[CustodyStore, EmbeddedBlockStore],
) -> None:
    custody, blocks = stores
    room = Room(custody, blocks, limit_bytes=1000)
    room.reserve(FIRST, 700)
    room.reserve(FIRST, 700)
    with pytest.raises(StoreFullError, match="700 of 1000 bytes"):
        room.reserve(SECOND, 301)
    room.reserve(SECOND, 300)
    room.free(FIRST)
    room.reserve(SECOND, 1000)


def test_a_copy_that_an_earlier_run_began_counts_by_what_is_here(
    stores: tuple[CustodyStore, EmbeddedBlockStore],
) -> None:
    custody, blocks = stores
    blocks.put_many([bytes([n]) * 300 for n in range(2)], pin=held_pin(FIRST))
    room = Room(custody, blocks, limit_bytes=1000)
    with pytest.raises(StoreFullError, match="600 of 1000 bytes"):
        room.reserve(SECOND, 401)
    room.reserve(SECOND, 400)
    with pytest.raises(StoreFullError):
        room.reserve(FIRST, 900)


def test_a_whole_copy_has_its_room_whatever_the_limit(
    stores: tuple[CustodyStore, EmbeddedBlockStore],
) -> None:
    custody, blocks = stores
    custody.hold(Held(artifact_id=FIRST, blocks=3, size_bytes=700))
    room = Room(custody, blocks, limit_bytes=1)
    room.reserve(FIRST, 700)
    with pytest.raises(StoreFullError):
        room.reserve(SECOND, 1)
