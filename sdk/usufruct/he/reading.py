"""How kernels read sealed blocks: several at a time, since seeds expand together several times as fast as alone.

Where expansions may be at hand already, in a cache for instance, the mapping of blocks is an `ExpandingInputs`. Parsing stays
that of `container`: every block is checked before one of its residues is used.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from usufruct.he import packed, shake
from usufruct.he.container import SEED_BYTES, Ciphertext, Form, expand_seed, parse, seed_message
from usufruct.he.parameters import Parameters
from usufruct.he.residues import Residues

BlockKey = tuple[int, int]
"""(chunk, feature)."""

GROUP_BLOCKS = 8
_COMPILED_BITS = 33
"""Least width of a residue whose expansion is compiled; narrower ones are read in other words."""


class ExpandingInputs(Mapping[BlockKey, bytes]):
    """Blocks by (chunk, feature), together with the expansions of their seeds."""

    @abstractmethod
    def expansions(
        self, keys: Sequence[BlockKey], seeds: Sequence[bytes], parameters: Parameters, key_id: bytes
    ) -> Residues:
        """What `expand_seeds` gives for these seeds, which are those of the blocks named; shape (len(keys), N)."""


def read_sealed(
    keys: Sequence[BlockKey],
    inputs: Mapping[BlockKey, bytes],
    parameters: Parameters,
    key_id: bytes,
    *,
    compiled: bool,
) -> Iterator[Ciphertext]:
    """Parse input blocks of a job, in order; a few at a time are in memory.

    Parameters
    ----------
    inputs :
        Each of `keys` is looked up once, in order.
    parameters, key_id :
        That every block has to have.
    compiled :
        Use compiled code, which is many times as fast but has to be compiled once in every process.

    Raises
    ------
    ContainerError, WrongKeyDomainError
        If a block is not a sealed one of these parameters and this key domain.
    """
    for first in range(0, len(keys), GROUP_BLOCKS):
        group = keys[first : first + GROUP_BLOCKS]
        blocks = [inputs[key] for key in group]
        # Whatever the last bytes of a malformed block are, they expand, and `parse` refuses it.
        seeds = [block[-SEED_BYTES:].ljust(SEED_BYTES, b"\0") for block in blocks]
        if isinstance(inputs, ExpandingInputs):
            expanded = inputs.expansions(group, seeds, parameters, key_id)
        else:
            expanded = expand_seeds(seeds, parameters, key_id, compiled=compiled)
        for block, c1 in zip(blocks, expanded, strict=True):
            yield parse(
                block,
                key_id=key_id,
                parameters=parameters,
                forms=(Form.SEEDED,),
                unpacker=packed.unpack if compiled else None,
                expansion=c1,
            )


def expand_seeds(
    seeds: Sequence[bytes], parameters: Parameters, key_id: bytes, *, compiled: bool = True
) -> Residues:
    """Expand several seeds of one key domain: row i is `container.expand_seed` of seed i."""
    if compiled and parameters.residue_bits >= _COMPILED_BITS and shake.is_faster():
        messages = [seed_message(seed, parameters, key_id) for seed in seeds]
        return shake.uniform_below(messages, parameters.poly_modulus_degree, parameters.coeff_modulus)
    return np.stack([expand_seed(seed, parameters, key_id) for seed in seeds])
