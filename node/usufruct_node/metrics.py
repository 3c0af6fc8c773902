"""Prometheus metrics of a node, made of what its status says. Measures nothing itself."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from usufruct.records import JobState


class Metrics:
    """Prometheus metrics, brought up to date when they are read."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._block = Gauge("usufruct_indexed_block", "Newest indexed block", registry=registry)
        self._lag = Gauge(
            "usufruct_indexed_block_age_seconds", "Age of the newest indexed block", registry=registry
        )
        self._chain = Gauge("usufruct_chain_ok", "1 when the chain answers and moves", registry=registry)
        self._waiting = Gauge(
            "usufruct_waiting_transactions", "Transactions that wait for a block", registry=registry
        )
        self._endpoints = Gauge(
            "usufruct_endpoints_refused", "Endpoints of the chain that are unfit for use", registry=registry
        )
        self._peers = Gauge("usufruct_peers_connected", "Connected members", registry=registry)
        self._bytes = Gauge("usufruct_blocks_bytes", "Bytes in the block store", registry=registry)
        self._jobs = Gauge("usufruct_jobs", "Jobs on the ledger by state", ["state"], registry=registry)
        self._trouble = Gauge(
            "usufruct_jobs_in_trouble", "Jobs whose last step failed here", registry=registry
        )
        self._healthy = Gauge("usufruct_healthy", "1 when every dependency is well", registry=registry)
        self._refusals = Counter(
            "usufruct_refusals", "Refused peers and requests", ["reason"], registry=registry
        )
        self._counted: dict[str, int] = {}

    def update(self, status: dict[str, Any], jobs: dict[JobState, int]) -> CollectorRegistry:
        """Take over what `status` says; returns all, as of now."""
        if status["indexed_block"] is not None:
            self._block.set(status["indexed_block"])
            self._lag.set(max(0.0, time.time() - status["indexed_block_time"]))
        chain = status["chain"]
        self._chain.set(1 if chain["state"] == "ok" else 0)
        self._waiting.set(chain["waiting_transactions"])
        self._endpoints.set(sum(endpoint["refused"] is not None for endpoint in chain["endpoints"]))
        self._peers.set(len(status["connected"]))
        self._bytes.set(status["blocks_bytes"])
        self._trouble.set(len(status["jobs_in_trouble"]))
        self._healthy.set(1 if status["health"]["ok"] else 0)
        for state, count in jobs.items():
            self._jobs.labels(state.name).set(count)
        for reason, count in status["refusals"].items():
            # Of two requests at once, the later may bring the older status.
            more = max(0, count - self._counted.get(reason, 0))
            self._refusals.labels(reason).inc(more)
            self._counted[reason] = self._counted.get(reason, 0) + more
        return self._registry
