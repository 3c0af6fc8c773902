"""The verdict protocol `/usufruct/verdicts/1.0.0`: how an executor asks verifiers for what it may bring to the ledger for them.

A question is one byte (what is asked) and a job id of 32 bytes; the answer one byte (whether there is one) and, if so, as many
bytes as that kind of answer has. A stream carries one question. Nothing here is trusted: a commitment carries its
verifier's signature, and an opening opens a commitment that is on the ledger, or is worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Final

import trio

from usufruct.errors import PeerError
from usufruct.records import JobId, OrgId, Reveal, SignedVerdict
from usufruct_node.peers.connection import READ_BYTES, MemberStream
from usufruct_node.peers.deadlines import within
from usufruct_node.peers.host import PeerHost
from usufruct_node.peers.protocol import Reader, read_exactly

PROTOCOL_ID: Final = "/usufruct/verdicts/1.0.0"

_JOB_BYTES = 32
_SECONDS = 5.0
_THREADS = 4


class Question(IntEnum):
    """What is asked of a verifier about a job."""

    COMMITMENT = 1
    OPENING = 2


_ANSWER_BYTES = {Question.COMMITMENT: 32 + 8 + 64, Question.OPENING: 96}


Answer = Callable[[str, Question, JobId], bytes | None]
"""What this node tells the member with this peer id about its verdict on a job, or None. Called in a worker thread."""


class VerdictHandler:
    """Serves the protocol; register `serve` with `PeerHost.handle`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._threads = trio.CapacityLimiter(_THREADS)

    async def serve(self, peer_id: str, stream: MemberStream) -> None:
        """Answer the one question of a stream.

        Raises
        ------
        PeerError
            If the peer is too slow or breaks the protocol.
        """
        with within(_SECONDS, "receiving a question"):
            question, job_id = await read_question(stream)
        answer = await trio.to_thread.run_sync(self._answer, peer_id, question, job_id, limiter=self._threads)
        with within(_SECONDS, "sending an answer"):
            await stream.write(encode_answer(answer))
            await stream.finish()
            while await stream.read(READ_BYTES):
                pass


async def ask(
    host: PeerHost, peer_id: str, multiaddr: str, question: Question, job_id: JobId
) -> bytes | None:
    """Ask a verifier about a job; None when it has no answer for us, or not yet.

    Raises
    ------
    InputError
        If the peer id or the address is malformed.
    PeerRefusedError
        If either side's gate refuses.
    PeerError
        If it is unreachable, too slow or breaks the protocol.
    """
    stream = await host.open_stream(peer_id, multiaddr, PROTOCOL_ID)
    try:
        with within(_SECONDS, "an answer"):
            await stream.write(encode_question(question, job_id))
            return await read_answer(stream, question)
    finally:
        await stream.abandon()


def encode_question(question: Question, job_id: JobId) -> bytes:
    """Encode a question."""
    return bytes((question,)) + job_id


async def read_question(reader: Reader) -> tuple[Question, JobId]:
    """Read one question.

    Raises
    ------
    PeerError
        If it is cut, or of an unknown kind.
    """
    data = await read_exactly(reader, 1 + _JOB_BYTES)
    try:
        return Question(data[0]), JobId(data[1:])
    except ValueError as exc:
        raise PeerError(f"an unknown question {data[0]}") from exc


def encode_answer(answer: bytes | None) -> bytes:
    """Encode an answer, or that there is none."""
    return b"\0" if answer is None else b"\1" + answer


async def read_answer(reader: Reader, question: Question) -> bytes | None:
    """Read the answer to a question; None when the peer has none.

    Raises
    ------
    PeerError
        If it is cut or malformed.
    """
    status = await read_exactly(reader, 1)
    if status == b"\0":
        return None
    if status != b"\1":
        raise PeerError("an answer with an unknown status")
    return await read_exactly(reader, _ANSWER_BYTES[question])


def pack_verdict(verdict: SignedVerdict) -> bytes:
    """A signed commitment as an answer."""
    return verdict.commitment + verdict.deadline.to_bytes(8, "big") + verdict.r + verdict.vs


def unpack_verdict(answer: bytes) -> SignedVerdict:
    """Inverse of `pack_verdict`."""
    return SignedVerdict(
        commitment=answer[:32],
        deadline=int.from_bytes(answer[32:40], "big"),
        r=answer[40:72],
        vs=answer[72:104],
    )


def pack_reveal(reveal: Reveal) -> bytes:
    """What was committed to, as an answer."""
    return reveal.result_digest + reveal.possession + reveal.salt


def unpack_reveal(answer: bytes, verifier: OrgId) -> Reveal:
    """Inverse of `pack_reveal`."""
    return Reveal(verifier=verifier, result_digest=answer[:32], possession=answer[32:64], salt=answer[64:96])
