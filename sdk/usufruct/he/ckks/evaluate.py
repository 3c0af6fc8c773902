"""The kernel on SEAL's evaluator: ciphertexts in, ciphertexts out, no secret and no randomness.

Blocks are parsed before SEAL sees anything, and SEAL sees only what is rebuilt from their fields; even so, a peer's
numbers reach it here, which is why `isolated` runs this in a process with a memory limit. The same blocks give the same
bytes: plaintexts come encoded, and every step is an exact operation on residues.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import tenseal.sealapi as sealapi

from usufruct.errors import ContainerError, KernelParameterError
from usufruct.he.ckks import backend
from usufruct.he.ckks.container import (
    Form,
    encode_ciphertext,
    parse_ciphertext,
    parse_model,
    parse_relinearisation_key,
)
from usufruct.he.ckks.kernel import P3, RESULT_SCALES
from usufruct.he.ckks.parameters import CKKS_CUBIC

_TOP = CKKS_CUBIC.top_level


class CubicEvaluator:
    """Scores chunks of rows under one model and one key domain.

    Parameters
    ----------
    relinearisation_key, model :
        Blocks; checked here.
    key_id :
        Key domain that everything has to belong to.

    Raises
    ------
    ContainerError, WrongKeyDomainError
        If a block is malformed or of another key domain.
    """

    def __init__(self, relinearisation_key: bytes, model: bytes, key_id: bytes) -> None:
        self._key_id = key_id
        self._key = backend.relinearisation_key_to_seal(
            parse_relinearisation_key(relinearisation_key, key_id=key_id)
        )
        self._model = parse_model(model)
        self._evaluator = sealapi.Evaluator(backend.context())

    @property
    def n_features(self) -> int:
        """Blocks that a chunk has to have."""
        return int(self._model.multipliers.shape[1])

    def score(self, blocks: Iterable[bytes]) -> bytes:
        """Score one chunk.

        Parameters
        ----------
        blocks :
            Of form SEALED, one for each feature, in the model's order; read one at a time.

        Returns
        -------
        result :
            A container of form RESULT.

        Raises
        ------
        ContainerError, WrongKeyDomainError
            If a block is malformed or of another key domain, or the result would not be encrypted.
        KernelParameterError
            If there are more or fewer blocks than features.
        """
        try:
            z, u, v = self._linear_maps(blocks)
            found = self._cubic(z, u, v)
        except RuntimeError as exc:
            # What SEAL raises, with every size and level checked before, is a transparent result.
            raise ContainerError("SEAL refuses these ciphertexts", field="transparent") from exc
        return encode_ciphertext(backend.from_seal(found, self._key_id))

    def _linear_maps(self, blocks: Iterable[bytes]) -> list[Any]:
        """z, u and v one level below the top, each with its bias."""
        totals: list[Any] = [None, None, None]
        n_blocks = 0
        for feature, block in enumerate(blocks):
            n_blocks += 1
            if feature >= self.n_features:
                break
            column = backend.to_seal(parse_ciphertext(block, Form.SEALED, key_id=self._key_id))
            for row, scale in enumerate(RESULT_SCALES):
                multiplier = int(self._model.multipliers[row, feature])
                if multiplier:
                    totals[row] = self._with_term(
                        totals[row], column, multiplier, float(scale * P3 / backend.SCALE)
                    )
        if n_blocks != self.n_features:
            raise KernelParameterError(f"the model takes {self.n_features} blocks for every chunk of rows")
        for row, (total, scale) in enumerate(zip(totals, RESULT_SCALES, strict=True)):
            self._evaluator.rescale_to_next_inplace(total)
            total.scale = float(scale)
            self._evaluator.add_plain_inplace(
                total, backend.constant(int(self._model.biases[row]), _TOP - 1, float(scale))
            )
        return totals

    def _with_term(self, total: Any, column: Any, multiplier: int, scale: float) -> Any:
        term = sealapi.Ciphertext(backend.context())
        self._evaluator.multiply_plain(column, backend.constant(multiplier, _TOP, scale), term)
        if total is None:
            return term
        self._evaluator.add_inplace(total, term)
        return total

    def _cubic(self, z: Any, u: Any, v: Any) -> Any:
        """u z^2 + v on level 0."""
        evaluator = self._evaluator
        evaluator.square_inplace(z)
        evaluator.relinearize_inplace(z, self._key)
        evaluator.rescale_to_next_inplace(z)
        evaluator.mod_switch_to_inplace(u, backend.parms_id(1))
        evaluator.multiply_inplace(z, u)
        evaluator.relinearize_inplace(z, self._key)
        evaluator.rescale_to_next_inplace(z)
        evaluator.mod_switch_to_inplace(v, backend.parms_id(0))
        # S was chosen so that this is exact; SEAL's own figure has rounding in it.
        z.scale = backend.SCALE
        evaluator.add_inplace(z, v)
        return z
