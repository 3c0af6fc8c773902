"""What an executor asks of verifiers, so that one transaction brings the words of all: commitments, later openings.

Nobody depends on it: a verifier whose word was not asked for, or not brought, sends it itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import trio

from usufruct.errors import UsufructError, VerificationError
from usufruct.records import MemberStatus, Participant, Reveal, Role, SignedVerdict
from usufruct.verify import signer_of, verdict_commitment
from usufruct_node.index import JobRow
from usufruct_node.peers.identity import peer_id_text
from usufruct_node.peers.verdicts import Question, ask, unpack_reveal, unpack_verdict
from usufruct_node.roles.context import RoleContext

_PAUSE_SECONDS = 0.1, 1.0
"""Before a verifier is asked again: at first, and at most. Each question is a stream of its own."""


@dataclass(frozen=True, slots=True)
class Patience:
    """For how many seconds members are asked again."""

    silent_s: float
    """Since they were last heard of: those that cannot be reached, or break the protocol."""
    working_s: float
    """In all: those that go on answering, and have nothing to say yet. Not less than `silent_s`."""


async def signed_verdicts(
    context: RoleContext, row: JobRow, patience: Patience
) -> list[tuple[Participant, SignedVerdict]]:
    """Verifiers that give their commitments in time, with these, in the order that the ledger wants."""
    org = context.org
    verifiers = [
        member
        for member in context.index.participants()
        if member.status == MemberStatus.ACTIVE
        and Role.VERIFIER in member.roles
        and member.id not in (org, row.job.requester)
    ]
    network = context.ledger.network
    words: dict[int, tuple[Participant, SignedVerdict]] = {}
    for member, answer in await _answers(context, row, Question.COMMITMENT, verifiers, patience):
        word = unpack_verdict(answer)
        with suppress(VerificationError):
            signer = signer_of(
                word,
                chain_id=network.chain_id,
                job_ledger=network.contracts["JobLedger"],
                job_id=row.job_id,
            )
            if signer == member.node_account and word.deadline > row.job.deadline:
                words[int(signer, 16)] = (member, word)
    own = context.member(org)
    return [words[account] for account in sorted(words)][: row.job.asked - (Role.VERIFIER in own.roles)]


async def reveals(context: RoleContext, row: JobRow, patience: Patience) -> list[Reveal]:
    """What verifiers committed to that have not revealed it themselves, as far as they say it in time."""
    silent = {v.verifier: v.commitment for v in context.index.verdicts(row.job_id) if v.result_digest is None}
    network = context.ledger.network
    found = []
    verifiers = [context.member(verifier) for verifier in silent]
    for member, answer in await _answers(context, row, Question.OPENING, verifiers, patience):
        reveal = unpack_reveal(answer, member.id)
        opened = verdict_commitment(
            chain_id=network.chain_id,
            job_ledger=network.contracts["JobLedger"],
            job_id=row.job_id,
            verifier=member.id,
            result_digest=reveal.result_digest,
            held=reveal.possession,
            salt=reveal.salt,
        )
        # The ledger refuses the digest zero, and with it all openings of the batch.
        if opened == silent[member.id] and any(reveal.result_digest):
            found.append(reveal)
    return found


async def _answers(
    context: RoleContext, row: JobRow, question: Question, members: Sequence[Participant], patience: Patience
) -> list[tuple[Participant, bytes]]:
    """Ask members at once, and again those that have no answer yet, until all have or the patience with them is over."""
    found: list[tuple[Participant, bytes]] = []

    async def insist(member: Participant) -> None:
        begun = trio.current_time()
        pause, at_most = _PAUSE_SECONDS
        with trio.CancelScope(deadline=begun + patience.silent_s) as scope:
            while True:
                with suppress(UsufructError):
                    peer_id = peer_id_text(member.peer_id)
                    answer = await ask(context.host, peer_id, member.endpoint, question, row.job_id)
                    if answer is not None:
                        found.append((member, answer))
                        return
                    heard = trio.current_time()
                    scope.deadline = min(heard + patience.silent_s, begun + patience.working_s)
                await trio.sleep(pause)
                pause = min(1.5 * pause, at_most)

    async with trio.open_nursery() as nursery:
        for member in members:
            nursery.start_soon(insist, member)
    return found
