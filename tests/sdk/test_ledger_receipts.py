"""The newest final block, asked for once by many that wait."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from usufruct.errors import LedgerUnreachableError
from usufruct.ledger import Head
from usufruct.ledger.receipts import FinalHead

WAITING = 12


class SlowEndpoint:
    """Answers when it is let, and counts how often it is asked."""

    def __init__(self, trouble: Exception | None = None) -> None:
        self.asked = 0
        self.may_answer = threading.Event()
        self._trouble = trouble

    def finalised(self) -> Head:
        self.asked += 1
        number = self.asked
        assert self.may_answer.wait(30)
        if self._trouble is not None:
            raise self._trouble
        return Head(number, bytes(32), 0)


def asked_by_many(endpoint: SlowEndpoint, head: FinalHead) -> list[Any]:
    together = threading.Barrier(WAITING + 1)

    def ask() -> Any:
        together.wait(30)
        try:
            return head.not_older_than(60.0).number
        except LedgerUnreachableError as exc:
            return exc

    with ThreadPoolExecutor(WAITING) as pool:
        answers = [pool.submit(ask) for _ in range(WAITING)]
        together.wait(30)
        endpoint.may_answer.set()
        return [answer.result() for answer in answers]


def test_threads_that_wait_at_the_same_time_ask_once() -> None:
    endpoint = SlowEndpoint()
    head = FinalHead(endpoint)  # type: ignore[arg-type]
    assert asked_by_many(endpoint, head) == [1] * WAITING
    assert endpoint.asked == 1


def test_an_answer_that_is_too_old_is_not_used_again() -> None:
    endpoint = SlowEndpoint()
    endpoint.may_answer.set()
    head = FinalHead(endpoint)  # type: ignore[arg-type]
    assert [head.not_older_than(60.0).number, head.not_older_than(60.0).number] == [1, 1]
    assert head.not_older_than(-1.0).number == 2


def test_what_one_found_out_about_the_endpoint_holds_for_all_that_asked_meanwhile() -> None:
    trouble = LedgerUnreachableError("nobody there")
    endpoint = SlowEndpoint(trouble)
    head = FinalHead(endpoint)  # type: ignore[arg-type]
    assert asked_by_many(endpoint, head) == [trouble] * WAITING
    assert endpoint.asked == 1
    with pytest.raises(LedgerUnreachableError):
        head.not_older_than(-1.0)
    assert endpoint.asked == 2
