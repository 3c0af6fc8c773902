"""Who may have which block: every member, every purpose, every state of a job's life on a real chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from chain_fixture import CAST, KERNEL, Consortium, Vote, reveal_moves, word
from usufruct.content import Cid, Codec
from usufruct.records import (
    ArtifactId,
    JobId,
    JobRequest,
    JobState,
    MemberStatus,
    OrgId,
    Participant,
    Refusal,
    Role,
    label,
)
from usufruct_node.holdings import Holding, Holdings, Purpose, may_read
from usufruct_node.index import Index, catch_up

SCOPE = label("holding-study")
PARAMETERS = Cid.from_digest(b"\x0d" * 32, Codec.DAG_CBOR)
BLOCK = Cid.of(b"some block", Codec.RAW)
VERIFIERS = {"north", "south", "auditor"}
LIVE = ("CLAIMED", "COMMITTED", "REVEALING", "VERIFIED", "OPENED")


def reads(
    index: Index,
    keeper: OrgId,
    member: Participant,
    cid: Cid,
    holding: Holding,
    *,
    now: int = 0,
    copies: frozenset[tuple[ArtifactId, OrgId]] = frozenset(),
) -> bool:
    """What `keeper` decides at a time, when these members are to hold these copies."""
    return may_read(
        index,
        keeper,
        member,
        cid,
        holding,
        now=now,
        is_holder=lambda artifact, org: (artifact, org) in copies,
    )


@dataclass
class Life:
    """A job's life; after each step the index of that moment is kept, and who may read what from it."""

    net: Consortium
    bundle: ArtifactId
    manifest: bytes
    job_id: JobId
    result: Cid
    """Manifest of what the job found."""
    indexes: dict[str, Index]
    now: int = 0
    """Chain time that is asked about."""
    copies: frozenset[tuple[ArtifactId, OrgId]] = frozenset()
    """Who is to hold what."""

    def allowed(
        self, moment: str, purpose: Purpose, *, keeper: str = "north", block: Cid = BLOCK
    ) -> set[str]:
        """Names of the members that may read a block that `keeper` (of parameters: the partner) keeps for this purpose."""
        index = self.indexes[moment]
        ref = {
            Purpose.BUNDLE: self.manifest,
            Purpose.HELD: self.bundle,
            Purpose.RESULT: self.job_id,
            Purpose.RELEASE: self.job_id,
        }
        holding = Holding(purpose, ref.get(purpose, b""))
        cid = PARAMETERS if purpose == Purpose.PARAMETERS else block
        keeper = self.net["university" if purpose == Purpose.PARAMETERS else keeper].id
        records = {name: index.participant(member.id) for name, member in self.net.members.items()}
        return {
            name
            for name, record in records.items()
            if record and reads(index, keeper, record, cid, holding, now=self.now, copies=self.copies)
        }


@pytest.fixture(scope="module")
def life(chain_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """`university` asks; it is a verifier, too, which must not help it. `idle` is a second compute node."""
    cast = CAST | {
        "university": Role.PARTNER | Role.VERIFIER,
        "rival": Role.PARTNER,
        "idle": Role.COMPUTE,
        "suspended": Role.VERIFIER | Role.AUDITOR | Role.COMPUTE,
        "removed": Role.VERIFIER | Role.AUDITOR | Role.CUSTODIAN,
    }
    net = Consortium(chain_url, cast=cast)
    for name, status in (("suspended", MemberStatus.SUSPENDED), ("removed", MemberStatus.REMOVED)):
        net.govern("ParticipantRegistry", "setStatus", net[name].id, status)
    manifest = word()
    bundle = net.bundle("north", net.key_domain("north"), scope=SCOPE, content_digest=manifest)
    epoch = net.epoch("north", SCOPE)
    grant = net.granted("university", "north", bundle, SCOPE)
    directory = tmp_path_factory.mktemp("index")
    digest = word()
    told = Life(net, bundle, manifest, JobId(bytes(32)), Cid.from_digest(digest, Codec.DAG_CBOR), {})

    def moment(name: str) -> None:
        index = Index(directory / f"{name}.db")
        catch_up(index, net.reader)
        row = index.job(told.job_id)
        assert name == "BEFORE" or (row and row.job.state.name == name)
        told.indexes[name] = index

    moment("BEFORE")
    (told.job_id,) = net.post(
        "university",
        [
            JobRequest(
                artifact_id=bundle,
                grant_id=grant,
                kernel_id=KERNEL,
                parameters_digest=PARAMETERS.digest,
                purpose=SCOPE,
                consent_epoch=epoch,
                policy_version=1,
                rho_micro=1,
                row_level=False,
                nonce=1,
            )
        ],
    )
    moment("POSTED")
    net.claim([told.job_id])
    moment("CLAIMED")
    net.commit({told.job_id: digest})
    moment("COMMITTED")
    votes = [Vote.of(net[name], told.job_id, digest) for name in sorted(VERIFIERS)]
    net.together(vote.commit_move(net.network) for vote in votes)
    moment("REVEALING")
    net.together(reveal_moves(votes))
    moment("VERIFIED")
    net["north"].node.transact("JobLedger", "openRelease", told.job_id)
    moment("OPENED")
    net["north"].node.transact("JobLedger", "recordRelease", told.job_id, BLOCK.digest, 1)
    moment("RELEASED")
    yield told
    for index in told.indexes.values():
        index.close()


ACTIVE = {"north", "south", "compute", "auditor", "university", "rival", "idle"}
EXECUTION = VERIFIERS | {"compute"}
_AT_A_HOLDER = {
    "BEFORE": {"auditor", "north"},
    "POSTED": {"auditor", "north"},
    **dict.fromkeys(LIVE, VERIFIERS | {"compute"}),
    "RELEASED": {"auditor", "north"},
}
TABLE: dict[Purpose, dict[str, set[str]]] = {
    Purpose.CATALOGUE: dict.fromkeys(("BEFORE", "POSTED", *LIVE, "RELEASED"), ACTIVE),
    Purpose.BUNDLE: {
        "BEFORE": {"auditor"},
        "POSTED": {"auditor"},
        **dict.fromkeys(LIVE, EXECUTION),
        "RELEASED": {"auditor"},
    },
    Purpose.HELD: _AT_A_HOLDER,
    Purpose.PARAMETERS: {
        "BEFORE": {"auditor"},
        "POSTED": {"auditor", "compute", "idle", "north"},
        **dict.fromkeys(LIVE, EXECUTION),
        "RELEASED": {"auditor", "compute", "north"},
    },
    Purpose.RESULT: {
        **{key: set() for key in ("BEFORE", "POSTED", "CLAIMED", "COMMITTED")},
        **dict.fromkeys(("REVEALING", "VERIFIED", "OPENED", "RELEASED"), VERIFIERS),
    },
    Purpose.RELEASE: {
        **{key: set() for key in ("BEFORE", "POSTED", *LIVE)},
        "RELEASED": {"auditor", "university"},
    },
}


@pytest.mark.parametrize(("purpose", "moment"), [(p, m) for p, row in TABLE.items() for m in row])
def test_a_block_is_for_those_with_business_and_for_nobody_else(
    life: Life, purpose: Purpose, moment: str
) -> None:
    keeper = "idle" if purpose == Purpose.HELD else "north"
    assert life.allowed(moment, purpose, keeper=keeper) == TABLE[purpose][moment]


def test_a_member_that_is_to_hold_a_copy_may_have_the_ciphertexts_from_steward_and_holders(
    life: Life,
) -> None:
    copies = frozenset({(life.bundle, life.net["idle"].id)})
    chosen = replace(life, copies=copies)
    assert chosen.allowed("BEFORE", Purpose.BUNDLE) == {"auditor", "idle"}
    assert chosen.allowed("BEFORE", Purpose.HELD, keeper="south") == {"auditor", "idle", "north"}
    other = replace(life, copies=frozenset({(ArtifactId(word()), life.net["idle"].id)}))
    assert other.allowed("BEFORE", Purpose.BUNDLE) == {"auditor"}
    gone = replace(life, copies=frozenset({(life.bundle, life.net["suspended"].id)}))
    assert gone.allowed("BEFORE", Purpose.BUNDLE) == {"auditor"}


def test_from_the_second_retention_ends_nobody_gets_ciphertexts(life: Life) -> None:
    artifact = life.indexes["OPENED"].artifact(life.bundle)
    assert artifact
    for purpose, keeper in ((Purpose.BUNDLE, "north"), (Purpose.HELD, "idle")):
        before = replace(life, now=artifact.retain_until - 1)
        assert before.allowed("OPENED", purpose, keeper=keeper) >= {"auditor", "compute"}
        after = replace(life, now=artifact.retain_until)
        assert after.allowed("OPENED", purpose, keeper=keeper) == set()


def test_once_a_claim_lapses_other_compute_nodes_may_read_the_parameters_and_no_ciphertexts(
    life: Life,
) -> None:
    row = life.indexes["CLAIMED"].job(life.job_id)
    assert row
    for now, others in ((row.job.deadline - 1, set()), (row.job.deadline, {"idle"})):
        then = replace(life, now=now)
        assert then.allowed("CLAIMED", Purpose.PARAMETERS) == EXECUTION | others
        assert then.allowed("CLAIMED", Purpose.BUNDLE) == EXECUTION
        # What was delivered in time does not lapse.
        assert then.allowed("COMMITTED", Purpose.PARAMETERS) == EXECUTION


def test_what_is_held_for_others_is_not_taken_for_an_own_bundle_nor_the_other_way(life: Life) -> None:
    assert life.allowed("OPENED", Purpose.HELD, keeper="north") == set()
    assert life.allowed("OPENED", Purpose.BUNDLE, keeper="idle") == set()


def test_parameters_that_a_member_keeps_are_opened_by_its_own_jobs_only(life: Life) -> None:
    """Somebody else's job may cite the same digest."""
    index, holding = life.indexes["OPENED"], Holding(Purpose.PARAMETERS, b"")
    for keeper, readers in (("university", EXECUTION), ("rival", {"auditor"})):
        found = {
            name
            for name, member in life.net.members.items()
            if (record := index.participant(member.id))
            and reads(index, life.net[keeper].id, record, PARAMETERS, holding)
        }
        assert found == readers


def test_the_partner_never_gets_result_ciphertexts_whatever_its_roles(life: Life) -> None:
    assert Role.VERIFIER in life.net["university"].record.roles
    for moment in life.indexes:
        assert "university" not in life.allowed(moment, Purpose.RESULT)
        assert "university" not in life.allowed(moment, Purpose.BUNDLE)


def test_the_partner_gets_the_manifest_of_its_result_once_it_is_verified(life: Life) -> None:
    """For its own lineage: it names the ciphertexts, and is none."""
    for moment in life.indexes:
        expected = {"university"} if moment in ("VERIFIED", "OPENED", "RELEASED") else set()
        others = life.allowed(moment, Purpose.RESULT)
        assert life.allowed(moment, Purpose.RESULT, block=life.result) - others == expected, moment


def test_a_result_is_refused_to_everybody_until_commits_are_closed(life: Life) -> None:
    for moment in ("POSTED", "CLAIMED", "COMMITTED"):
        assert not life.allowed(moment, Purpose.RESULT)


def test_a_steward_that_registers_another_stewards_manifest_opens_nothing_of_it(
    life: Life, tmp_path: Path
) -> None:
    """`south` cites the manifest of `north` as its own and has a job run on it: blocks at `north` stay closed."""
    net, scope = life.net, label("copied-study")
    manifest = word()
    net.bundle("north", net.key_domain("north"), scope=scope, content_digest=manifest)
    copy = net.bundle("south", net.key_domain("south"), scope=scope, content_digest=manifest)
    request = JobRequest(
        artifact_id=copy,
        grant_id=net.granted("rival", "south", copy, scope),
        kernel_id=KERNEL,
        parameters_digest=word(),
        purpose=scope,
        consent_epoch=net.epoch("south", scope),
        policy_version=1,
        rho_micro=1,
        row_level=False,
        nonce=900,
    )
    (job,) = net.post("rival", [request])
    net.claim([job])
    index = Index(tmp_path / "index.db")
    catch_up(index, net.reader)
    told = Life(net, copy, manifest, job, BLOCK, {"NOW": index})
    assert told.allowed("NOW", Purpose.BUNDLE, keeper="north") == {"auditor"}
    assert "compute" in told.allowed("NOW", Purpose.BUNDLE, keeper="south")
    index.close()


def test_a_release_beside_the_one_that_the_ledger_names_is_given_to_nobody(life: Life) -> None:
    index, keeper, holding = (
        life.indexes["RELEASED"],
        life.net["north"].id,
        Holding(Purpose.RELEASE, life.job_id),
    )
    other = Cid.of(b"the same result with other noise", Codec.DAG_CBOR)
    for name in ("university", "auditor"):
        member = index.participant(life.net[name].id)
        assert member and reads(index, keeper, member, BLOCK, holding)
        assert not reads(index, keeper, member, other, holding)


def test_suspended_removed_and_unknown_members_get_nothing(life: Life) -> None:
    for moment in life.indexes:
        for purpose in Purpose:
            assert not life.allowed(moment, purpose) & {"suspended", "removed"}


@pytest.mark.parametrize("status", [MemberStatus.NONE, MemberStatus.SUSPENDED, MemberStatus.REMOVED])
def test_a_record_that_is_not_active_gets_not_even_the_catalogue(life: Life, status: MemberStatus) -> None:
    auditor = life.net.reader.participant(life.net["auditor"].id)
    fields = {name: getattr(auditor, name) for name in Participant.__dataclass_fields__}
    stranger = Participant(**(fields | {"status": status}))
    assert reads(life.indexes["RELEASED"], auditor.id, auditor, BLOCK, Holding(Purpose.CATALOGUE, b""))
    for purpose in Purpose:
        assert not reads(life.indexes["RELEASED"], auditor.id, stranger, BLOCK, Holding(purpose, life.job_id))


def test_blocks_of_unknown_jobs_and_bundles_are_refused(life: Life) -> None:
    index = life.indexes["VERIFIED"]
    south = life.net.reader.participant(life.net["south"].id)
    for purpose in (Purpose.BUNDLE, Purpose.RESULT, Purpose.RELEASE, Purpose.PARAMETERS):
        for ref in (bytes(32), b"", b"\xff" * 40):
            assert not reads(index, south.id, south, BLOCK, Holding(purpose, ref))


@pytest.mark.parametrize("end", [JobState.REFUSED, JobState.STALE_CONSENT])
def test_after_a_job_ended_without_release_nobody_gets_its_result_or_the_bundle(
    life: Life, end: JobState, tmp_path: Path
) -> None:
    net = life.net
    bundle = net.bundle("north", life.indexes["BEFORE"].artifact(life.bundle).key_id, scope=SCOPE)
    grant = net.granted("university", "north", bundle, SCOPE)
    request = JobRequest(
        artifact_id=bundle,
        grant_id=grant,
        kernel_id=KERNEL,
        parameters_digest=word(),
        purpose=SCOPE,
        consent_epoch=net.reader.consent_epoch(net["north"].id, SCOPE).epoch,
        policy_version=1,
        rho_micro=1,
        row_level=False,
        nonce=100 + end,
    )
    (job,) = net.post("university", [request])
    digest = word()
    net.claim([job])
    net.commit({job: digest})
    votes = [Vote.of(net[name], job, digest) for name in sorted(VERIFIERS)]
    net.together(vote.commit_move(net.network) for vote in votes)
    net.together(reveal_moves(votes))
    if end == JobState.REFUSED:
        net["north"].node.transact("JobLedger", "refuseRelease", job, Refusal.RESULT_INVALID)
    else:
        net.epoch("north", SCOPE)
        net["north"].node.transact("JobLedger", "openRelease", job)
    index = Index(tmp_path / "index.db")
    catch_up(index, net.reader)
    assert index.job(job).job.state == end
    manifest = index.artifact(bundle).content_digest
    for member in index.participants():
        assert not reads(index, net["north"].id, member, BLOCK, Holding(Purpose.RESULT, job))
        if member.id != net["auditor"].id:
            assert not reads(index, net["north"].id, member, BLOCK, Holding(Purpose.BUNDLE, manifest))
            assert not reads(index, net["north"].id, member, BLOCK, Holding(Purpose.RELEASE, job))
    index.close()


# The durable map.


def test_a_reason_is_listed_and_dropped_for_every_block_and_leaves_the_others(tmp_path: Path) -> None:
    holdings, bundle = Holdings(tmp_path / "node.db"), b"\2" * 32
    holdings.add([BLOCK, PARAMETERS], Purpose.HELD, bundle)
    holdings.add([BLOCK], Purpose.HELD, b"\3" * 32)
    assert set(holdings.cids(Purpose.HELD, bundle)) == {BLOCK, PARAMETERS}
    holdings.drop(Purpose.HELD, bundle)
    assert holdings.cids(Purpose.HELD, bundle) == [] and holdings.of(PARAMETERS) == []
    assert holdings.of(BLOCK) == [Holding(Purpose.HELD, b"\3" * 32)]


def test_reasons_are_kept_once_and_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "node.db"
    holdings = Holdings(path)
    for _ in range(2):
        holdings.add([BLOCK, PARAMETERS], Purpose.CATALOGUE)
        holdings.add([BLOCK], Purpose.RESULT, b"\1" * 32)
    assert holdings.count() == 3
    holdings.close()
    again = Holdings(path)
    assert set(again.of(BLOCK)) == {Holding(Purpose.CATALOGUE, b""), Holding(Purpose.RESULT, b"\1" * 32)}
    assert again.of(Cid.of(b"unknown", Codec.RAW)) == []
    assert again.of(Cid.of(b"some block", Codec.DAG_CBOR)) == []
    again.close()
    assert path.stat().st_mode & 0o077 == 0
