"""Prometheus metrics out of what a node's status says."""

from __future__ import annotations

from typing import Any

from usufruct_node.metrics import Metrics


def status(refused: int) -> dict[str, Any]:
    return {
        "indexed_block": None,
        "chain": {"state": "ok", "waiting_transactions": 0, "endpoints": []},
        "connected": [],
        "blocks_bytes": 0,
        "jobs_in_trouble": {},
        "health": {"ok": True},
        "refusals": {"not a member": refused},
    }


def test_refusals_are_counted_once_also_when_two_requests_overlap_and_the_older_status_comes_last() -> None:
    metrics = Metrics()
    told = []
    for refused in (3, 5, 4, 6):
        registry = metrics.update(status(refused), {})
        told.append(registry.get_sample_value("usufruct_refusals_total", {"reason": "not a member"}))
    assert told == [3, 5, 5, 6]
