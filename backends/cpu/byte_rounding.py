"""Rounding of a float32 to a byte in three operations where the graph's own form takes six.

Adding 1.5 * 2**23 rounds a float32 to a whole number, ties to even, and leaves that number in the lowest bits: between
2**23 and 2**24 neighbouring float32 are 1 apart. Bounded there, the bits are the byte; the zero point is added to them
as an integer. For every number this gives what `nearbyint`, the sum with the zero point and the bounds give: a number
that is too large to be rounded this way lies beyond the bounds on the same side.
"""

from __future__ import annotations

from dataclasses import replace

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.relax.kernel import Kernel
from backends.relax.loops import Expr

__all__ = ["rounded_quickly"]

_MAGIC = 12_582_912.0
_BYTES = ("uint8", "int8")
_MOST = 2.0**15
"""Of the bounds and the zero point."""


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


def _is_nearbyint(value: Expr) -> bool:
    if not isinstance(value, Call) or str(value.expr_ty()) != "float32":
        return False
    return str(getattr(value.op, "name", "")).rpartition(".")[2] == "nearbyint"


def _number(value: Expr) -> float | None:
    """A constant that leaves the sums where float32 are 1 apart."""
    if not isinstance(value, tirx.FloatImm) or str(value.expr_ty()) != "float32":
        return None
    number = float(value.value)
    return number if abs(number) <= _MOST else None


def _constant(value: float) -> Expr:
    return tirx.const(value, "float32")
