"""Rounding of a float32 to a byte in three operations where the graph's own form takes six.

Adding 1.5 * 2**23 rounds a float32 to a whole number, ties to even, and leaves that number in the lowest bits: between
2**23 and 2**24 neighbouring float32 are 1 apart. Bounded there, the bits are the byte; the zero point is added to them
as an integer. For every number this gives what `nearbyint`, the sum with the zero point and the bounds give: a number
that is too large to be rounded this way lies beyond the bounds on the same side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.relax.kernel import Kernel
from backends.relax.loops import Expr

__all__ = ["Rounding", "rounded_quickly", "rounding_of"]

_MAGIC = 12_582_912.0
_BYTES = ("uint8", "int8")
_MOST = 2.0**15
"""Of the bounds and the zero point."""


@dataclass(frozen=True)
class Rounding:
    """A rounding to a byte in its short form.

    Attributes:
        value: the float32 that is rounded.
        dtype: "uint8" or "int8".
        zero: the zero point.
    """

    value: Expr
    dtype: str
    zero: int


def rounded_quickly(kernel: Kernel) -> Kernel:
    """The kernel with every rounding to a byte in its short form."""
    stages = (replace(s, value=tvm_ffi.structural_map(s.value, (tirx.Cast, _short))) for s in kernel.stages)
    return replace(kernel, stages=tuple(stages))


def _short(node: tirx.Cast) -> Expr:
    whole = node.value
    if str(node.expr_ty()) not in _BYTES or not isinstance(whole, tirx.Cast) or str(whole.expr_ty()) != "int32":
        return node
    bounded = whole.value
    if not isinstance(bounded, tirx.Max) or not isinstance(bounded.a, tirx.Min):
        return node
    moved, high, low = bounded.a.a, _number(bounded.a.b), _number(bounded.b)
    zero: float | None = 0.0
    if isinstance(moved, tirx.Add):
        moved, zero = moved.a, _number(moved.b)
    if high is None or low is None or zero is None or not _is_nearbyint(moved) or zero != int(zero):
        return node
    shifted = moved.args[0] + _constant(_MAGIC)
    bits = tirx.reinterpret(
        "int32", tirx.Max(tirx.Min(shifted, _constant(_MAGIC + high - zero)), _constant(_MAGIC + low - zero))
    )
    return tirx.Cast(str(node.expr_ty()), bits + tirx.const(int(zero), "int32") if zero else bits)


def rounding_of(node: Expr) -> Rounding | None:
    """What an expression in the short form rounds; `None` where it is not one, or has bounds besides the type's."""
    if not isinstance(node, tirx.Cast) or str(node.expr_ty()) not in _BYTES:
        return None
    dtype, bits, zero = str(node.expr_ty()), node.value, 0
    if isinstance(bits, tirx.Add) and isinstance(bits.b, tirx.IntImm):
        bits, zero = bits.a, int(bits.b.value)
    if not isinstance(bits, Call) or not _is_called(bits, "reinterpret") or not isinstance(bits.args[0], tirx.Max):
        return None
    bounded = bits.args[0]
    if not isinstance(bounded.a, tirx.Min) or not isinstance(bounded.a.a, tirx.Add):
        return None
    info = np.iinfo(dtype)
    numbers = [_value_of(each) for each in (bounded.a.a.b, bounded.a.b, bounded.b)]
    if numbers != [_MAGIC, _MAGIC + info.max - zero, _MAGIC + info.min - zero]:
        return None
    return Rounding(bounded.a.a.a, dtype, zero)


def _is_nearbyint(value: Expr) -> bool:
    return isinstance(value, Call) and str(value.expr_ty()) == "float32" and _is_called(value, "nearbyint")


def _is_called(call: Call, name: str) -> bool:
    return str(getattr(call.op, "name", "")).rpartition(".")[2] == name


def _value_of(value: Expr) -> float | None:
    return float(value.value) if isinstance(value, tirx.FloatImm) else None


def _number(value: Expr) -> float | None:
    """A constant that leaves the sums where float32 are 1 apart."""
    if not isinstance(value, tirx.FloatImm) or str(value.expr_ty()) != "float32":
        return None
    number = float(value.value)
    return number if abs(number) <= _MOST else None


def _constant(value: float) -> Expr:
    return tirx.const(value, "float32")
