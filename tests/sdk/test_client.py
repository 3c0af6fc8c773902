"""The facade: what it decides by itself, beside handing on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bundle_fixture import SCOPE, SmallBundle
from chain_fixture import Consortium
from usufruct import consent_book
from usufruct.client import Client
from usufruct.consent import ConsentStatus
from usufruct.consent_book import ConsentBook
from usufruct.content import Cid, dag
from usufruct.errors import BlockNotFoundError, InputError, NodeUnreachableError, VerificationError
from usufruct.features import Extractor
from usufruct.he import bgv
from usufruct.he.parameters import BGV_MOMENTS
from usufruct.keys.identity import AuthorityKeys
from usufruct.publish import PublishedBundle
from usufruct.records import label
from usufruct.rounds import Call, Contributed, RoundTerms, contribute


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


# Rounds, with real consents on a real chain.

MEMBERS = ("auditor", "south", "university")
ENTRIES = 6
_NUMBERS = count(1)


class Desk:
    """Stands where the own node stands: keeps what it is given, and tells of bundles."""

    def __init__(self) -> None:
        self.records: dict[Cid, object] = {}
        self.bundles: dict[str, object] = {}
        self.scope = ""

    def stage(self, blocks: Iterable[bytes]) -> Iterator[Cid]:
        return map(Cid.of, blocks)

    def put_record(self, kind: str, record: object) -> Cid:
        self.records[dag.cid_of(record)] = record
        return dag.cid_of(record)

    def query(self, path: str) -> list[dict[str, str]]:
        return [{"artifact_id": id_, "steward": "north", "scope": self.scope} for id_ in self.bundles]


class Steward(Client):
    """The client of `north`, whose bundles a test registers by hand."""

    def bundle(self, artifact_id: Any) -> Any:
        return SimpleNamespace(manifest=self.content.bundles[artifact_id])


@dataclass
class Round:
    client: Steward
    desk: Desk
    call: Call
    files: dict[str, Contributed]

    def close(self, *members: str) -> PublishedBundle:
        return self.client.publish_round(self.call, [self.files[name] for name in members], consent_days=30)

    def states(self) -> dict[str, str]:
        return {row["subject"]: row["state"] for row in self.client.consents(scope=self.call.scope)}


@pytest.fixture
def party(consortium: Consortium, tmp_path: Path) -> Round:
    north, desk = consortium["north"], Desk()
    desk.scope = f"round-{next(_NUMBERS)}"
    book = ConsentBook(tmp_path / "consent.db", steward=north.id, pseudonym_key=b"\x07" * 32)
    keys = AuthorityKeys(
        ledger_key=north.authority_key, consent_pseudonym_key=b"\x07" * 32, hpke_private=north.hpke_private
    )
    client = Steward(name="north", content=desk, ledger=north.ledger, keys=keys, book=book)
    secret = bgv.generate_secret_key(BGV_MOMENTS)
    terms = RoundTerms(
        name="model",
        extractor=Extractor(name="trainer", sha256="ab" * 32),
        n_entries=ENTRIES,
        max_abs=1.0,
        max_l2=2.0,
        scale=100,
        key_id=secret.key_id,
        parameters=secret.parameters,
    )
    call = client.call_for_updates(secret, terms, scope=desk.scope)
    files = {
        name: contribute(
            call,
            np.full(ENTRIES, 0.1),
            member=name,
            recipient_key=north.record.hpke_key,
            network=consortium.network,
            signing_key=consortium[name].authority_key,
        )
        for name in MEMBERS
    }
    return Round(client, desk, call, files)


def test_closing_a_round_again_lets_nobody_in_who_withdrew_since(party: Round) -> None:
    """The file that a member signed is as old as its first consent."""
    first = party.close(*MEMBERS)
    assert set(party.states().values()) == {"in force"}
    assert party.close(*MEMBERS).cid == first.cid, "what was interrupted may be repeated"
    epoch = party.client.withdraw_consent("south", scope=party.call.scope)
    with pytest.raises(InputError, match=r"consent of south to .* is withdrawn"):
        party.close(*MEMBERS)
    assert party.states() == {"auditor": "in force", "south": "withdrawn", "university": "in force"}
    steward = party.client.ledger.organisation_of(party.client.ledger.address)
    assert party.client.ledger.consent_epoch(steward, label(party.call.scope)) == epoch
    party.close("auditor", "university")


def test_a_call_is_closed_once_with_one_set_of_contributions(party: Round) -> None:
    """Two bundles would have a budget each, and sums over them would differ by one member's update."""
    party.desk.bundles["0a" * 32] = party.close("auditor", "south").manifest
    party.close("auditor", "south")
    with pytest.raises(InputError, match="closed already"):
        party.close(*MEMBERS)
    assert sorted(party.states()) == ["auditor", "south"], "nothing was recorded"


def test_a_round_that_broke_off_before_anchoring_is_anchored_when_it_is_closed_again(
    party: Round, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise NodeUnreachableError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(consent_book, "anchor_epoch", dies)
        with pytest.raises(NodeUnreachableError):
            party.close(*MEMBERS)
    published = party.close(*MEMBERS)
    steward = party.client.ledger.organisation_of(party.client.ledger.address)
    epoch = party.client.ledger.consent_epoch(steward, label(party.call.scope))
    status = ConsentStatus.from_record(
        next(r for cid, r in party.desk.records.items() if cid.digest == epoch.status_digest)
    )
    assert status.mask_of(published.manifest.subjects).all()


def test_only_active_members_contribute_and_only_to_ones_own_call(
    party: Round, consortium: Consortium
) -> None:
    stranger = replace(party.files["south"], member="stranger")
    with pytest.raises(InputError, match="no member"):
        party.client.publish_round(party.call, [stranger], consent_days=1)
    foreign = replace(party.call, steward="south").signed(
        consortium.network, consortium["south"].authority_key
    )
    with pytest.raises(VerificationError, match="of south, not of north"):
        party.client.publish_round(foreign, list(party.files.values()), consent_days=1)
    assert not party.states()
