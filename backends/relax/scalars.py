"""Scalar expressions inside a kernel: casts that cost nothing when there is nothing to cast, and the types in which sums are kept."""

from __future__ import annotations

from tvm import tirx

_WIDER = {"float16": "float32", "bfloat16": "float32"}


def wider(dtype: str) -> str:
    """The type in which a sum over elements of `dtype` is kept."""
    return _WIDER.get(dtype, dtype)


def cast(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """The value as `dtype`."""
    return value if str(value.expr_ty()) == dtype else tirx.Cast(dtype, value)


def lowest(dtype: str) -> tirx.Expr:
    """What no element is below: minus infinity, or the smallest integer."""
    if "float" in dtype:
        return tirx.const(float("-inf"), dtype)
    return tirx.min_value(dtype)
