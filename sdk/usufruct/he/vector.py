"""What this processor offers to compiled loops: vector registers, unaligned reads, wide products.

Made as LLVM instructions where numba's Python has no word for them. Imports the compiler only when called. Knows no
residues.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, NamedTuple


class VectorUnit(NamedTuple):
    """Registers and the multiply-and-add of 16-bit integers."""

    lanes: int
    """32-bit words per register."""

    multiply_add: str
    """LLVM's name of the instruction; empty if there is none."""


@lru_cache(maxsize=1)
def vector_unit() -> VectorUnit:
    """The widest unit of the processor that the compiler makes code for."""
    from llvmlite import binding
    from numba.core import codegen, config

    told = config.CPU_FEATURES
    features = set((codegen.get_host_cpu_features() if told is None else told).split(","))
    if "+avx512bw" in features:
        return VectorUnit(16, "llvm.x86.avx512.pmaddw.d.512")
    if "+avx2" in features:
        return VectorUnit(8, "llvm.x86.avx2.pmadd.wd")
    if binding.get_process_triple().startswith("x86_64"):
        return VectorUnit(4, "llvm.x86.sse2.pmadd.wd")
    return VectorUnit(4, "")


def load_word() -> Any:
    """Make a read of eight bytes at any address, lowest first; for use in compiled code."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing: Any, address: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            word = builder.load(builder.inttoptr(arguments[0], ir.IntType(64).as_pointer()))
            word.align = 1
            return word if sys.byteorder == "little" else builder.bswap(word)

        return types.uint64(types.int64), generate

    return load


def store_word() -> Any:
    """Make a write of eight bytes at any address, lowest first; for use in compiled code."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def store(typing: Any, address: Any, value: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place, word = arguments
            written = builder.store(
                word if sys.byteorder == "little" else builder.bswap(word),
                builder.inttoptr(place, ir.IntType(64).as_pointer()),
            )
            written.align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.uint64), generate

    return store


def multiply_high() -> Any:
    """Make the upper 64 bits of a product of two 64-bit words; for use in compiled code."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic

    @intrinsic  # type: ignore[untyped-decorator]
    def high(typing: Any, left: Any, right: Any) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            wide = ir.IntType(128)
            product = builder.mul(*(builder.zext(word, wide) for word in arguments))
            return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

        return types.uint64(types.uint64, types.uint64), generate

    return high
