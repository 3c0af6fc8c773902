"""Content identifiers of the two kinds this network uses, parsed strictly.

CIDv1 with sha2-256: `raw` for ciphertext chunks, `dag-cbor` for manifests. CIDv0, other hashes, other bases
and every non-canonical spelling are refused, so that equal blocks have one name and a name is safe as a file
name.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from usufruct.errors import BlockMismatchError, CidError

CID_BYTES: Final = 36
"""Length of the binary form: version, codec, hash function, hash length, 32 bytes of digest."""

CID_CHARS: Final = 59
"""Length of the text form: multibase prefix `b`, then 58 base32 characters."""

_TEXT = re.compile(r"b[a-z2-7]{58}", re.ASCII)
_SHA2_256 = b"\x12\x20"


class Codec(IntEnum):
    """What a block's bytes are; the numbers are the multicodec table's."""

    RAW = 0x55
    """Opaque bytes: ciphertext chunks."""

    DAG_CBOR = 0x71
    """Canonical CBOR with links: manifests and other records."""


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """The identifier of one block.

    Source: CIDv1 of the multiformats specification; only sha2-256 and the codecs of `Codec`.
    """

    codec: Codec

    digest: bytes
    """sha2-256 of the block, 32 bytes; this, not the text form, goes on the ledger."""

    def __post_init__(self) -> None:
        if type(self.codec) is not Codec:
            raise CidError(f"a CID needs a Codec, not {self.codec!r}")
        if type(self.digest) is not bytes or len(self.digest) != 32:
            raise CidError("a CID needs a digest of 32 bytes")

    @classmethod
    def of(cls, data: bytes, codec: Codec = Codec.RAW) -> Cid:
        """Return the identifier of `data`."""
        return cls(codec, hashlib.sha256(data).digest())

    @classmethod
    def from_digest(cls, digest: bytes, codec: Codec = Codec.RAW) -> Cid:
        """Return the identifier whose sha2-256 digest is known, from the ledger for instance.

        Raises
        ------
        CidError
            Unless `digest` is 32 bytes.
        """
        return cls(codec, digest)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Cid:
        """Parse the binary form.

        Raises
        ------
        CidError
            Unless `raw` is exactly 36 bytes of a CIDv1 with a known codec and sha2-256.
        """
        if type(raw) is not bytes or len(raw) != CID_BYTES:
            raise CidError(f"a binary CID has {CID_BYTES} bytes")
        if raw[0] != 1:
            raise CidError("only CIDv1 is used here")
        if raw[2:4] != _SHA2_256:
            raise CidError("only sha2-256 CIDs are used here")
        try:
            codec = Codec(raw[1])
        except ValueError as exc:
            raise CidError(f"codec 0x{raw[1]:02x} is not used here; raw and dag-cbor are") from exc
        return cls(codec, raw[4:])

    @classmethod
    def parse(cls, text: str) -> Cid:
        """Parse the canonical text form, lower-case base32 without padding.

        Raises
        ------
        CidError
            On anything else: paths, upper case, other bases, padding, non-zero spare bits.
        """
        if not isinstance(text, str) or _TEXT.fullmatch(text) is None:
            shown = text[:80] if isinstance(text, str) else type(text).__name__
            raise CidError(f"not a CID of this network: {shown!r}", hint="it looks like bafkrei… or bafyrei…")
        raw = base64.b32decode(text[1:].upper() + "======")
        cid = cls.from_bytes(raw)
        if str(cid) != text:
            raise CidError(f"not the canonical spelling of a CID: {text!r}")
        return cid

    def __bytes__(self) -> bytes:
        return bytes((1, self.codec)) + _SHA2_256 + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode("ascii").rstrip("=").lower()

    def check(self, data: bytes) -> None:
        """Hash `data` and compare.

        Raises
        ------
        BlockMismatchError
            If `data` is not the block that this identifier names.
        """
        if hashlib.sha256(data).digest() != self.digest:
            raise BlockMismatchError(f"{len(data)} bytes do not hash to {self}")
