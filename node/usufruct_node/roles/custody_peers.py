"""Asks other members about copies of bundles, and checks what they say before anything is made of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from usufruct.custody import (
    ErasureStatement,
    PlacementNotice,
    StorageChallenge,
    StorageProof,
    check_possession,
)
from usufruct.errors import (
    BlockNotFoundError,
    InputError,
    ManifestError,
    PeerError,
    PeerRefusedError,
    StorageProofError,
)
from usufruct.records import ArtifactId, OrgId, Participant
from usufruct_node.custody_service import MAX_NOTICES, NOT_HELD, PAGE
from usufruct_node.peers.custody import ask
from usufruct_node.peers.identity import peer_id_text
from usufruct_node.roles.context import RoleContext

_MAX_LISTED = 256
"""Longest list in one answer."""
_MAX_STATEMENTS = 4096
"""Statements on one bundle that are asked for, in as many questions as it takes."""
_SLOW_SECONDS = 5.0
"""A member that has nothing to give says so sooner."""


class NotHeldError(StorageProofError):
    """The member says itself that it does not hold the bytes."""


class Silent:
    """Members that did not answer, and are not asked again for so long: one cannot hold up what concerns others."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[OrgId, float] = {}

    def add(self, org: OrgId) -> None:
        """Note that a member did not answer now."""
        self._until[org] = self.now() + self._seconds

    def add_if_slow(self, org: OrgId, began: float) -> None:
        """Note a member that had nothing to give, and took so long to say so that it might as well have been silent."""
        if self.now() - began >= _SLOW_SECONDS:
            self.add(org)

    @contextmanager
    def noting(self, org: OrgId) -> Iterator[None]:
        """Inside, a member is asked for one thing: notes it if it does not answer, or is slow to say that it has nothing."""
        began = self.now()
        try:
            yield
        except (BlockNotFoundError, PeerRefusedError):
            self.add_if_slow(org, began)
            raise
        except PeerError:
            self.add(org)
            raise

    def now(self) -> float:
        """Seconds on the clock that silence is measured with."""
        return time.monotonic()

    def __contains__(self, org: OrgId) -> bool:
        return self.now() < self._until.get(org, 0.0)


@dataclass(frozen=True, slots=True)
class CustodyPeers:
    """Questions of one node."""

    context: RoleContext
    answer_s: float
    """Seconds that a member has for an answer."""

    async def prove(self, holder: OrgId, challenge: StorageChallenge) -> StorageProof:
        """Have a member prove that it holds what a challenge names; compared with the blocks that are here.

        Raises
        ------
        NotHeldError
            If it says that it does not.
        StorageProofError
            If the answer is wrong.
        PeerError
            If there is no answer.
        BlockNotFoundError, BlockMismatchError
            If the blocks are not here.
        """
        member = self.context.member(holder)
        answer = await self._ask(member, {"ask": "proof", "challenge": challenge.to_record()})
        if answer == {"refused": NOT_HELD}:
            raise NotHeldError(f"{member.name} does not hold what it was asked for")
        if set(answer) != {"proof"}:
            raise PeerRefusedError(f"{member.name} does not answer the challenge: {_word(answer)}")
        try:
            proof = StorageProof.from_record(_map(answer["proof"]))
        except ManifestError as exc:
            raise StorageProofError(f"{member.name} sent no proof: {exc}") from exc
        await trio.to_thread.run_sync(
            check_possession,
            self.context.ledger.network,
            member,
            challenge,
            proof,
            self.context.store.get,
        )
        return proof

    async def notices(
        self, holder: OrgId, artifact_ids: Sequence[ArtifactId], steward: OrgId
    ) -> list[PlacementNotice]:
        """Notices of one steward as a member knows them, each with the steward's own signature.

        Raises
        ------
        PeerError, ManifestError, VerificationError
        """
        found: list[PlacementNotice] = []
        signer = self.context.member(steward)
        for at in range(0, len(artifact_ids), MAX_NOTICES):
            batch = list(artifact_ids[at : at + MAX_NOTICES])
            answer = await self._ask(self.context.member(holder), {"ask": "notices", "artifacts": batch})
            if set(answer) != {"notices"}:
                raise PeerRefusedError(f"no notices were told: {_word(answer)}")
            for record in _list(answer["notices"]):
                notice = PlacementNotice.from_record(_map(record))
                if notice.artifact_id not in batch:
                    raise ManifestError("a notice on a bundle that was not asked about")
                await trio.to_thread.run_sync(notice.check, self.context.ledger.network, signer)
                found.append(notice)
        return found

    async def is_replaced(self, steward: OrgId, artifact_id: ArtifactId) -> bool:
        """Whether a steward says that every present holder of its bundle has proved to hold it.

        Raises
        ------
        PeerError
        """
        answer = await self._ask(self.context.member(steward), {"ask": "replaced", "artifact": artifact_id})
        return answer == {"replaced": True}

    async def erasures(
        self, holder: OrgId, artifact_id: ArtifactId
    ) -> tuple[list[ErasureStatement], list[OrgId]]:
        """Statements on a bundle as a member knows them, each with the signature of the member that makes it; and the
        members whose statement it misses, on its own word.

        Raises
        ------
        PeerError, ManifestError, VerificationError
        """
        found: list[ErasureStatement] = []
        awaited: list[OrgId] = []
        for skip in range(0, _MAX_STATEMENTS, PAGE):
            more = await self._erasures(holder, artifact_id, skip, found, awaited)
            if not more:
                break
        return found, awaited

    async def _erasures(
        self,
        holder: OrgId,
        artifact_id: ArtifactId,
        skip: int,
        found: list[ErasureStatement],
        awaited: list[OrgId],
    ) -> bool:
        """Add what one answer says; whether there is more to be had."""
        question = {"ask": "erasures", "artifact": artifact_id} | ({"skip": skip} if skip else {})
        answer = await self._ask(self.context.member(holder), question)
        if set(answer) - {"more"} != {"erasures", "awaited"}:
            raise PeerRefusedError(f"no erasures were told: {_word(answer)}")
        for record in _list(answer["erasures"]):
            statement = ErasureStatement.from_record(_map(record))
            if statement.artifact_id != artifact_id:
                raise ManifestError("a statement on another bundle")
            signer = self.context.member(statement.holder)
            await trio.to_thread.run_sync(statement.check, self.context.ledger.network, signer)
            found.append(statement)
        members = _list(answer["awaited"])
        if any(type(org) is not bytes or len(org) != 32 for org in members):
            raise ManifestError("what is awaited is no list of members")
        awaited.extend(OrgId(org) for org in members)
        return answer.get("more") is True

    async def _ask(self, member: Participant, question: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            peer_id = peer_id_text(member.peer_id)
            return await ask(self.context.host, peer_id, member.endpoint, question, seconds=self.answer_s)
        except InputError as exc:
            raise PeerError(f"{member.name} cannot be dialled where it says it listens: {exc}") from exc


def _list(value: object) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_LISTED:
        raise ManifestError("not a short list")
    return value


def _map(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ManifestError("not a map")
    return value


def _word(answer: Mapping[str, Any]) -> str:
    word = answer.get("refused")
    return word[:40] if isinstance(word, str) and word.isprintable() else "an answer of another kind"
