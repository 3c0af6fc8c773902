"""Content through the organisation's own node: hands it blocks, asks it for blocks of other members.

Every block that comes back is checked against its CID; the node is ours, yet not trusted more than a disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from usufruct.content import dag
from usufruct.content.cid import Cid, Codec
from usufruct.errors import (
    BlockNotFoundError,
    ConfigurationError,
    ContentError,
    InputError,
    NodeUnreachableError,
    NotAuthorisedError,
    PeerError,
    StoreFullError,
)
from usufruct.waiting import told

_PAGE = 1000
"""Most entries that the node gives at a time."""

_BATCH_BYTES = 1_500_000
_POLL_SECONDS = 0.1
_QUERY_SECONDS = 15.0
"""For what the node looks up on its own disk."""

_IDLE_SECONDS = 2.0
"""After which a connection is not used again: the node closes it after five, and may do so while a request is on its way."""

_ERRORS: dict[int, type[ContentError] | type[NotAuthorisedError] | type[InputError]] = {
    400: InputError,
    403: NotAuthorisedError,
    404: BlockNotFoundError,
    422: InputError,
    502: PeerError,
    507: StoreFullError,
}


class NodeContent:
    """Blocking client of one node's HTTP interface."""

    def __init__(self, url: str, token_file: Path, *, timeout_s: float = 120.0) -> None:
        """Raises ConfigurationError if the token cannot be read; `timeout_s` is for what may need other members' nodes."""
        try:
            token = token_file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigurationError(
                f"the node's token {token_file} cannot be read: {exc}",
                hint="`usufruct-node run` makes one; only the account that runs the node may read it",
            ) from exc
        self._timeout_s = timeout_s
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            trust_env=False,
            limits=httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def stage(self, blocks: Iterable[bytes]) -> Iterator[Cid]:
        """Hand raw blocks to the node in batches; yields their CIDs in order.

        Staged blocks are kept until a record that links them is put, nothing is staged for an hour, or the node is
        started anew.
        """
        batch: list[bytes] = []
        size = 0
        for block in blocks:
            if batch and size + len(block) > _BATCH_BYTES:
                yield from self._stage(batch)
                batch, size = [], 0
            batch.append(block)
            size += len(block)
        if batch:
            yield from self._stage(batch)

    def put_record(self, kind: str, record: object) -> Cid:
        """Hand the node a DAG-CBOR record of a known kind (bundle, policy, status, public, parameters)."""
        data = dag.encode(record)
        cid = Cid.of(data, Codec.DAG_CBOR)
        self._request("PUT", f"/records/{kind}/{cid}", content=data, timeout=self._timeout_s)
        return cid

    def get(self, cid: Cid, *, holder: str) -> bytes:
        """A block from the node, which asks the member `holder` when it does not have it.

        Raises
        ------
        BlockNotFoundError, NotAuthorisedError, PeerError, BlockMismatchError
        """
        data = self._exchange(
            "GET", f"/blocks/{cid}", params={"holder": holder}, timeout=self._timeout_s
        ).content
        cid.check(data)
        return data

    def get_record(self, cid: Cid, *, holder: str) -> dict[str, dag.DagValue]:
        """A DAG-CBOR record, decoded strictly."""
        return dag.decode_map(self.get(cid, holder=holder))

    def query(self, path: str, **params: str | int | bool) -> Any:
        """A JSON answer of the node's query interface, from what the node itself has."""
        most_s = min(_QUERY_SECONDS, self._timeout_s)
        return self._request("GET", path, params=params, timeout=most_s).json()

    def query_members(self, path: str) -> Any:
        """A JSON answer for which the node asks other members' nodes."""
        return self._request("GET", path, timeout=self._timeout_s).json()

    def query_all(self, path: str, *, key: str, **params: str | int | bool) -> list[dict[str, Any]]:
        """Every entry of a list that the node gives a part at a time, newest first; `key` names an entry's id.

        Entries that come in meanwhile shift the others, which are then met twice; where entries can leave the list meanwhile,
        some may be missed.
        """
        found: dict[str, dict[str, Any]] = {}
        offset = 0
        while True:
            part = self.query(path, **params, limit=_PAGE, offset=offset)
            known = len(found)
            for entry in part:
                found.setdefault(entry[key], entry)
            if len(part) < _PAGE or len(found) == known:
                return list(found.values())
            offset += _PAGE

    def await_block(self, number: int, *, patience_s: float = 10.0) -> None:
        """Wait until the node has indexed a block: its answers are a moment older than the ledger.

        Raises
        ------
        NodeUnreachableError
            If it does not come to it within `patience_s`.
        """
        deadline = time.monotonic() + patience_s
        while (indexed := self.query("/cursor")["indexed_block"]) < number:
            if time.monotonic() > deadline:
                raise NodeUnreachableError(
                    f"the node has read the ledger up to block {indexed} of {number}",
                    hint="it may be catching up: `usufruct-node status` shows `indexed_block`; then repeat the command",
                )
            time.sleep(_POLL_SECONDS)

    def _stage(self, batch: Sequence[bytes]) -> list[Cid]:
        expected = [Cid.of(block, Codec.RAW) for block in batch]
        self._request("POST", "/blocks", content=dag.encode(list(batch)), timeout=self._timeout_s)
        return expected

    def _request(self, method: str, path: str, *, timeout: float, **kwargs: Any) -> httpx.Response:
        with told(f"the node at {self._client.base_url}", most_s=timeout):
            return self._exchange(method, path, timeout=timeout, **kwargs)

    def _exchange(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **kwargs)
        except httpx.HTTPError as exc:
            raise NodeUnreachableError(f"the node at {self._client.base_url} does not answer: {exc}") from exc
        if response.is_success:
            return response
        try:
            answer = response.json()
            message, hint = str(answer["detail"]), str(answer.get("hint", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            message, hint = response.text[:200] or f"HTTP {response.status_code}", ""
        raise _ERRORS.get(response.status_code, ContentError)(message, hint=hint)
