"""Scalar expressions inside a kernel: their types, casts that vanish where there is nothing to cast, neutral elements."""

from __future__ import annotations

from tvm import tirx

_WIDER = {"float16": "float32", "bfloat16": "float32"}


def scalar_type(value: tirx.Expr) -> str:
    """The element type, as a numpy or ml_dtypes name."""
    return str(value.expr_ty())


def is_float(value: tirx.Expr) -> bool:
    """Whether the value is of a floating point type."""
    return "float" in scalar_type(value)


def is_unsigned(value: tirx.Expr) -> bool:
    """Whether the value is of an unsigned integer type, or a bool."""
    return scalar_type(value).startswith(("uint", "bool"))


def zero_like(value: tirx.Expr) -> tirx.Expr:
    """0 of the value's type."""
    return tirx.const(0, scalar_type(value))


def one_like(value: tirx.Expr) -> tirx.Expr:
    """1 of the value's type."""
    return tirx.const(1, scalar_type(value))


def wider(dtype: str) -> str:
    """The type in which a sum over elements of `dtype` is kept."""
    return _WIDER.get(dtype, dtype)


def cast(value: tirx.Expr, dtype: str) -> tirx.Expr:
    """The value as `dtype`."""
    return value if scalar_type(value) == dtype else tirx.Cast(dtype, value)


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
