"""The facade: what it decides by itself, beside handing on."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bundle_fixture import SCOPE, SmallBundle
from usufruct import consent_book
from usufruct.client import Client
from usufruct.errors import BlockNotFoundError, InputError, NodeUnreachableError


class Restored(Client):
    """A steward whose consent book is older than its bundles; which of them can be read, a test says."""

    def __init__(self, entries: list[dict[str, Any]], manifests: dict[str, object]) -> None:
        self.name = "north"
        self.content = SimpleNamespace(query=lambda path: entries)
        self.ledger = SimpleNamespace(finalised=lambda: SimpleNamespace(timestamp=1000))
        self._book = None
        self._manifests = manifests

    def bundle(self, artifact_id: str) -> Any:
        found = self._manifests[artifact_id]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(manifest=found)


def entry(artifact_id: str, **changes: object) -> dict[str, Any]:
    usual = {"artifact_id": artifact_id, "steward": "north", "scope": SCOPE}
    return usual | {"frozen": "NONE", "retain_until": 2000} | changes


def test_a_restored_book_follows_an_epoch_only_once_every_own_bundle_can_be_read(
    bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle that cannot be read would give the positions of its rows to whoever is recorded next."""
    anchored: list[int] = []
    monkeypatch.setattr(consent_book, "anchor_epoch", lambda *_, taken, **__: anchored.append(taken))
    few = replace(bundle.manifest, subjects=np.array([4, 17]))
    lost = BlockNotFoundError("nobody has it")
    entries = [
        entry("aa", scope="another"),
        entry("bb", steward="south"),
        entry("cc", frozen="BY_STEWARD"),
        entry("dd", retain_until=1000),
        entry("ee"),
        entry("ff"),
    ]
    found = {"aa": lost, "bb": lost, "cc": lost, "dd": lost, "ee": few, "ff": lost}
    with pytest.raises(InputError, match="bundle ff") as refused:
        Restored(entries, found).anchor_consents(scope=SCOPE, supersede=3)
    assert "freeze" in refused.value.hint and not anchored
    with pytest.raises(NodeUnreachableError):
        Restored(entries, found | {"ff": NodeUnreachableError("off")}).anchor_consents(
            scope=SCOPE, supersede=3
        )

    Restored(entries[:-1], found).anchor_consents(scope=SCOPE, supersede=3)
    Restored(entries, found).anchor_consents(scope=SCOPE)
    assert anchored == [18, 0]
