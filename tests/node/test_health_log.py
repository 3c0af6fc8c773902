"""The log of a node's health: every change once, nothing while nothing changes."""

from __future__ import annotations

import logging

import pytest

from usufruct_node.health_log import HealthLog


def test_a_part_that_fails_is_told_once_and_once_more_when_it_is_well(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    log = HealthLog()
    log.note({"ledger": "ok", "store": "ok"})
    assert caplog.messages == []
    for seconds in range(10, 20):
        log.note({"ledger": f"no endpoint has answered for {seconds} s", "store": "ok"})
    assert caplog.messages == ["ledger: no endpoint has answered for 10 s"]
    log.note({"ledger": "ok", "store": "disk full"})
    log.note({"ledger": "ok", "store": "disk full"})
    assert caplog.messages[1:] == ["ledger: ok again", "store: disk full"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_what_failed_before_the_first_look_is_told(caplog: pytest.LogCaptureFixture) -> None:
    HealthLog().note({"membership": "not an active member"})
    assert caplog.messages == ["membership: not an active member"]
