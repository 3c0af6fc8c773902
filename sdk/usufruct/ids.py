"""Ids as people give them: whole, or the first digits, of whatever the ledger or the own node's index knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import IntEnum
from typing import Final

from usufruct.content.node import NodeContent
from usufruct.errors import InputError
from usufruct.ledger import Ledger
from usufruct.records import ArtifactId, GrantId, JobId, KeyId, id_digits, parse_id

_ON_LEDGER: Final[Mapping[str, Callable[[Ledger, bytes], IntEnum]]] = {
    "artifact": lambda ledger, id_: ledger.artifact(ArtifactId(id_)).kind,
    "job": lambda ledger, id_: ledger.progress(JobId(id_)).state,
    "grant": lambda ledger, id_: ledger.grant(GrantId(id_)).status,
    "key domain": lambda ledger, id_: ledger.key_domain(KeyId(id_)).status,
}
"""For each kind of id what the ledger says of one, NONE where it does not know it; of artifacts it knows the bundles."""


def find_id(ledger: Ledger, node: NodeContent, kinds: Collection[str], text: str) -> tuple[str, bytes]:
    """The kind and the id of what is named by a whole id or its first hex digits; `kinds` are keys of the table above.

    The index is waited for before nothing is found: it lags the ledger by a moment.

    Raises
    ------
    InputError
        If no id, or more than one, begins with these digits.
    NodeUnreachableError
        If the index stays behind the ledger.
    """
    named = " or ".join(kinds)
    digits = id_digits(text, named)
    if len(digits) == 64:
        whole = bytes.fromhex(digits)
        for kind in kinds:
            if _ON_LEDGER[kind](ledger, whole):
                return kind, whole
    found = _indexed(node, kinds, digits)
    if not found:
        node.await_block(ledger.finalised().number)
        found = _indexed(node, kinds, digits)
    if not found:
        said = f"has the id {digits[:12]}…" if len(digits) == 64 else f"begins with {digits}"
        raise InputError(f"no {named} {said}")
    if len(found) > 1:
        raise InputError(f"{len(found)} {named}s begin with {digits}", hint="give more digits of the id")
    return found[0]


def _indexed(node: NodeContent, kinds: Collection[str], digits: str) -> list[tuple[str, bytes]]:
    return [
        (entry["kind"], parse_id(entry["id"], entry["kind"]))
        for entry in node.query(f"/ids/{digits}")
        if entry["kind"] in kinds
    ]
