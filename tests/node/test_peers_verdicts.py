"""Questions about verdicts between real hosts on loopback: answered to members only, strict both ways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from usufruct.content import Cid
from usufruct.errors import PeerError, PeerRefusedError
from usufruct.records import JobId, OrgId, Reveal, SignedVerdict
from usufruct_node.peers import PeerHost, PeerIdentity
from usufruct_node.peers.verdicts import (
    PROTOCOL_ID,
    Question,
    VerdictHandler,
    ask,
    encode_answer,
    encode_question,
    pack_reveal,
    pack_verdict,
    read_answer,
    read_question,
    unpack_reveal,
    unpack_verdict,
)

ASKER, VERIFIER, STRANGER = (PeerIdentity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
JOB = JobId(b"j" * 32)
words = st.binary(min_size=32, max_size=32)


class Bytes:
    """A stream of bytes that then ends."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    async def read(self, n: int) -> bytes:
        part, self.left = self.left[:n], self.left[n:]
        return part


@given(words, st.integers(0, 2**64 - 1), words, words)
def test_a_signed_commitment_comes_back(commitment: bytes, deadline: int, r: bytes, vs: bytes) -> None:
    verdict = SignedVerdict(commitment=commitment, deadline=deadline, r=r, vs=vs)
    answer = trio.run(read_answer, Bytes(encode_answer(pack_verdict(verdict))), Question.COMMITMENT)
    assert answer is not None and unpack_verdict(answer) == verdict


@given(words, words, words, words)
def test_an_opening_comes_back(verifier: bytes, digest: bytes, held: bytes, salt: bytes) -> None:
    reveal = Reveal(verifier=OrgId(verifier), result_digest=digest, possession=held, salt=salt)
    answer = trio.run(read_answer, Bytes(encode_answer(pack_reveal(reveal))), Question.OPENING)
    assert answer is not None and unpack_reveal(answer, OrgId(verifier)) == reveal


@given(st.binary(max_size=120))
def test_arbitrary_bytes_are_an_answer_of_the_right_length_or_a_peer_error(data: bytes) -> None:
    for question, length in ((Question.COMMITMENT, 104), (Question.OPENING, 96)):
        try:
            answer = trio.run(read_answer, Bytes(data), question)
        except PeerError:
            continue
        assert (answer is None and data[:1] == b"\0") or (answer == data[1 : 1 + length] != b"")


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_a_question_or_a_peer_error(data: bytes) -> None:
    try:
        question, job_id = trio.run(read_question, Bytes(data))
    except PeerError:
        assert len(data) < 33 or data[0] not in (1, 2)
    else:
        assert encode_question(question, job_id) == data[:33]


def between_hosts(
    answer: Callable[[str, Question, JobId], bytes | None],
    scenario: Callable[[PeerHost, PeerHost], Awaitable[None]],
    *,
    members: tuple[PeerIdentity, ...] = (ASKER, VERIFIER),
    asker: PeerIdentity = ASKER,
) -> None:
    def nothing(peer: str, cid: Cid) -> bool:
        raise AssertionError("nobody asked for a block")

    async def run() -> None:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                hosts = []
                for identity in (asker, VERIFIER):
                    host = PeerHost(
                        identity=identity,
                        is_member=({member.peer_id for member in members} | {VERIFIER.peer_id}).__contains__,
                        authorise=nothing,
                        read_block=lambda cid: None,
                    )
                    host.handle(PROTOCOL_ID, VerdictHandler(answer).serve)
                    await nursery.start(host.run)
                    hosts.append(host)
                await scenario(*hosts)
                nursery.cancel_scope.cancel()

    trio.run(run)


def test_a_verifier_answers_the_member_that_asks_about_the_job_that_it_asks_about() -> None:
    heard = []

    def answer(peer: str, question: Question, job_id: JobId) -> bytes | None:
        heard.append((peer, question, job_id))
        return b"o" * 96 if question == Question.OPENING else None

    async def scenario(asker: PeerHost, verifier: PeerHost) -> None:
        where = verifier.peer_id, verifier.multiaddr
        assert await ask(asker, *where, Question.COMMITMENT, JOB) is None
        assert await ask(asker, *where, Question.OPENING, JOB) == b"o" * 96
        assert asker.refusals() == verifier.refusals() == []

    between_hosts(answer, scenario)
    assert heard == [(ASKER.peer_id, question, JOB) for question in Question]


def test_a_stranger_is_told_nothing() -> None:
    def answer(peer: str, question: Question, job_id: JobId) -> bytes | None:
        raise AssertionError("a stranger was heard")

    async def scenario(asker: PeerHost, verifier: PeerHost) -> None:
        with pytest.raises((PeerRefusedError, PeerError)):
            await ask(asker, verifier.peer_id, verifier.multiaddr, Question.OPENING, JOB)

    between_hosts(answer, scenario, asker=STRANGER)


def test_an_answer_of_the_wrong_length_is_a_peer_error() -> None:
    async def scenario(asker: PeerHost, verifier: PeerHost) -> None:
        with pytest.raises(PeerError):
            await ask(asker, verifier.peer_id, verifier.multiaddr, Question.COMMITMENT, JOB)

    between_hosts(lambda peer, question, job_id: b"short", scenario)
