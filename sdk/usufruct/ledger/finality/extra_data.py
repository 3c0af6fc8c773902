"""The extra data of Besu's QBFT headers: RLP [vanity (32 bytes), validators, vote, round, seals].

Source: `QbftExtraDataCodec` of Besu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rlp

from usufruct.errors import MalformedProofError
from usufruct.ledger.finality.strict_rlp import decode_rlp

MAX_EXTRA_DATA_BYTES = 64 * 1024
VANITY_BYTES = 32
SEAL_BYTES = 65


@dataclass(frozen=True, slots=True, kw_only=True)
class QbftExtraData:
    """The extra data of a QBFT header."""

    vanity: bytes
    validators: tuple[bytes, ...]
    """Addresses; empty where a contract holds the validators."""
    vote: tuple[bytes, ...]
    """Empty, or (recipient, b"\\xff" to add it and b"" to drop it)."""
    round_number: int
    seals: tuple[bytes, ...]
    """65 bytes each: r, s, recovery id."""

    @classmethod
    def decode(cls, data: bytes) -> QbftExtraData:
        """Take extra data apart; strict.

        Raises
        ------
        MalformedProofError
        """
        items = decode_rlp(data, "QBFT extra data", limit=MAX_EXTRA_DATA_BYTES)
        if not isinstance(items, list) or len(items) != 5:
            raise MalformedProofError("QBFT extra data has not five items")
        vanity, validators, vote, round_number, seals = items
        well_formed = (
            isinstance(vanity, bytes)
            and len(vanity) == VANITY_BYTES
            and _all_of_length(validators, 20)
            and _is_vote(vote)
            and isinstance(round_number, bytes)
            and len(round_number) <= 4
            and not round_number.startswith(b"\0")
            and _all_of_length(seals, SEAL_BYTES)
        )
        if not well_formed:
            raise MalformedProofError("an item of QBFT extra data has the wrong form")
        return cls(
            vanity=vanity,
            validators=tuple(validators),
            vote=tuple(vote),
            round_number=int.from_bytes(round_number, "big"),
            seals=tuple(seals),
        )

    def encode(self, *, round_number: int | None = None, seals: Sequence[bytes] | None = None) -> bytes:
        """RLP; with another round or other seals if given."""
        agreed = self.round_number if round_number is None else round_number
        return bytes(
            rlp.encode(
                [
                    self.vanity,
                    list(self.validators),
                    list(self.vote),
                    agreed.to_bytes((agreed.bit_length() + 7) // 8, "big"),
                    list(self.seals if seals is None else seals),
                ]
            )
        )


def _all_of_length(items: Any, length: int) -> bool:
    return isinstance(items, list) and all(isinstance(i, bytes) and len(i) == length for i in items)


def _is_vote(vote: Any) -> bool:
    if vote == []:
        return True
    return (
        isinstance(vote, list)
        and len(vote) == 2
        and isinstance(vote[0], bytes)
        and len(vote[0]) == 20
        and vote[1] in (b"", b"\xff")
    )
