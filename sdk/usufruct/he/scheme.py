"""The seam between the schemes and everybody who owns a key domain.

A scheme is a name and the functions that draw its secrets, encrypt columns and open blocks. Its parameter sets are
those of `parameters.ALLOWED`, its container forms those of `container.FORMS`, its kernels those of the registry
that carry its name. To add one, write its module and name it in `SCHEMES`.

**Invariant:** loading this module loads TenSEAL, so a compute or verifier process never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from usufruct.errors import ConfigurationError
from usufruct.he import bfv, bgv
from usufruct.he.parameters import Parameters
from usufruct.he.secret import SecretKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """What the owner of a key domain does under one scheme."""

    name: str
    """As in `Parameters.scheme`."""

    generate_secret_key: Callable[[Parameters], SecretKey]
    """Draw the secret of a new key domain."""

    encrypt_columns: Callable[[NDArray[np.signedinteger[Any]], SecretKey], Iterator[tuple[int, int, bytes]]]
    """Encrypt a matrix lazily: (chunk, feature, seeded block), one block per column and N rows."""

    open_values: Callable[[bytes, SecretKey, Sequence[int]], list[int]]
    """Decrypt a block and return only the named rows; an extracted block has only number 0."""


SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType(
    {
        scheme.name: scheme
        for scheme in (
            Scheme(
                name="bfv",
                generate_secret_key=bfv.generate_secret_key,
                encrypt_columns=bfv.encrypt_columns,
                open_values=bfv.open_coefficients,
            ),
            Scheme(
                name="bgv",
                generate_secret_key=bgv.generate_secret_key,
                encrypt_columns=bgv.encrypt_columns,
                open_values=bgv.open_values,
            ),
        )
    }
)
"""Every scheme by its name."""


def scheme_of(parameters: Parameters) -> Scheme:
    """The scheme of a parameter set; raises ConfigurationError if this release has none of that name."""
    found = SCHEMES.get(parameters.scheme)
    if found is None:
        raise ConfigurationError(f"this release has no scheme {parameters.scheme!r}")
    return found
