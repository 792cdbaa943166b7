"""Scalar expressions inside a kernel: their types, casts, neutral elements."""

from __future__ import annotations

from tvm import tirx

_WIDER = {"float16": "float32", "bfloat16": "float32"}


def wider(dtype: str) -> str:
    """The type in which a sum over elements of `dtype` is kept."""
    return _WIDER.get(str(dtype), str(dtype))


def cast(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """The value as `dtype`."""
    return value if scalar_type(value) == str(dtype) else tirx.Cast(str(dtype), value)


def lowest(dtype: str) -> tirx.Expr:
    """What no element is below: minus infinity, or the smallest integer."""
    if "float" in dtype:
        return tirx.const(float("-inf"), dtype)
    return tirx.min_value(dtype)


def scalar_type(x: tirx.Expr) -> str:
    """The name of the type of an expression."""
    return str(x.expr_ty())


def is_float(x: tirx.Expr) -> bool:
    """Whether the expression is a floating-point number."""
    return "float" in scalar_type(x)


def is_unsigned(x: tirx.Expr) -> bool:
    """Whether the expression is an integer without a sign."""
    return scalar_type(x).startswith("uint")


def zero_like(x: tirx.Expr) -> tirx.Expr:
    """0 in the type of x."""
    return tirx.const(0, scalar_type(x))


def one_like(x: tirx.Expr) -> tirx.Expr:
    """1 in the type of x."""
    return tirx.const(1, scalar_type(x))


def minus(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """`a - b`, rounded as it says: of floats TVM takes `(x + y) - x` for y and `x - x` for 0, but not this sum."""
    return a + b * tirx.const(-1, scalar_type(b)) if is_float(a) else a - b
