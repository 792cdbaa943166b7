"""Element-wise arithmetic: operators of one, two or any number of operands.

A formula is written over scalars; `backends.relax.pointwise` broadcasts, widens float16 and bfloat16,
and follows shape arithmetic.
Selects are written so that a NaN operand is the one that is kept: `x < low ? low : x`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce

import onnx_ir as ir
from tvm import tirx

from backends.relax.attributes import get_int, get_str
from backends.relax.emitter import Emitter
from backends.relax.known import not_negative
from backends.relax.pointwise import Formula, pointwise
from backends.relax.registry import emits
from backends.relax.scalars import is_float, is_unsigned, minus, one_like, scalar_type, zero_like
from backends.relax.values import Refused, Result, static_int

_UNARY: dict[str, Formula] = {
    "Acos": tirx.acos,
    "Acosh": tirx.acosh,
    "Asin": tirx.asin,
    "Asinh": tirx.asinh,
    "Atan": tirx.atan,
    "Atanh": tirx.atanh,
    "Ceil": tirx.ceil,
    "Cos": tirx.cos,
    "Erf": tirx.erf,
    "Exp": tirx.exp,
    "Floor": tirx.floor,
    "Log": tirx.log,
    "Neg": lambda x: -x,
    "Reciprocal": lambda x: one_like(x) / x,
    "Round": tirx.nearbyint,
    "Sin": tirx.sin,
    "Sqrt": tirx.sqrt,
    "Tan": tirx.tan,
    "Tanh": tirx.tanh,
}


@emits(*_UNARY)
def unary(ctx: Emitter, node: ir.Node) -> Result:
    """A function of each element."""
    return pointwise(ctx, node.inputs, _UNARY[node.op_type], node.op_type.lower())


@emits("Cosh")
def cosh(ctx: Emitter, node: ir.Node) -> Result:
    """Half the sum of exp(x) and exp(-x), halved in the exponent so that it overflows no sooner than the result."""
    return pointwise(ctx, node.inputs, lambda x: _half_exp(x) + _half_exp(-x), "cosh")


@emits("Sinh")
def sinh(ctx: Emitter, node: ir.Node) -> Result:
    """Half the difference of exp(x) and exp(-x); near 0, where they cancel, the first terms of the series."""

    def formula(x: tirx.Expr) -> tirx.Expr:
        square, series = x * x, one_like(x)
        for n in (8, 6, 4, 2):
            series = one_like(x) + series * square * tirx.const(1 / (n * (n + 1)), scalar_type(x))
        return tirx.Select(tirx.abs(x) < one_like(x), x * series, _half_exp(x) - _half_exp(-x))

    return pointwise(ctx, node.inputs, formula, "sinh")


@emits("Abs")
def absolute(ctx: Emitter, node: ir.Node) -> Result:
    """The distance from zero; the smallest integer of a signed type is its own."""
    return pointwise(ctx, node.inputs, lambda x: x if is_unsigned(x) else tirx.abs(x), "abs")


@emits("Sign")
def sign(ctx: Emitter, node: ir.Node) -> Result:
    """-1, 0 or 1; NaN stays NaN."""

    def formula(x: tirx.Expr) -> tirx.Expr:
        positive = tirx.Select(x > zero_like(x), one_like(x), x)
        return positive if is_unsigned(x) else tirx.Select(x < zero_like(x), -one_like(x), positive)

    return pointwise(ctx, node.inputs, formula, "sign")


@emits("IsNaN")
def is_nan(ctx: Emitter, node: ir.Node) -> Result:
    """Whether each element is not a number."""
    return pointwise(ctx, node.inputs, tirx.isnan, "is_nan", "bool")


@emits("IsInf")
def is_inf(ctx: Emitter, node: ir.Node) -> Result:
    """Whether each element is infinite, of the signs that the attributes ask for."""
    negative, positive = get_int(node, "detect_negative", 1) == 1, get_int(node, "detect_positive", 1) == 1

    def formula(x: tirx.Expr) -> tirx.Expr:
        infinity = tirx.const(float("inf"), scalar_type(x))
        below, above = tirx.EQ(x, -infinity), tirx.EQ(x, infinity)
        if negative and positive:
            return tirx.any(below, above)
        return below if negative else above if positive else tirx.const(False, "bool")

    return pointwise(ctx, node.inputs, formula, "is_inf", "bool")


@emits("Add")
def add(ctx: Emitter, node: ir.Node) -> Result:
    """`a + b`."""
    return pointwise(ctx, node.inputs, operator.add, "add", keep_zero=True)


@emits("Sub")
def subtract(ctx: Emitter, node: ir.Node) -> Result:
    """`a - b`."""
    return pointwise(ctx, node.inputs, minus, "subtract")


@emits("Mul")
def multiply(ctx: Emitter, node: ir.Node) -> Result:
    """`a * b`."""
    return pointwise(ctx, node.inputs, operator.mul, "multiply", keep_zero=True)


@emits("Div")
def divide(ctx: Emitter, node: ir.Node) -> Result:
    """`a / b`; integers are rounded towards zero."""

    def formula(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        if is_float(a):
            return a / b
        if (fixed := static_int(b)) is not None and fixed > 0 and not_negative(ctx, a):
            return tirx.floordiv(a, b)
        sizes = fixed is None and scalar_type(a) == scalar_type(b) == "int64"
        if sizes and not_negative(ctx, a) and not_negative(ctx, b):
            return ctx.derived(tirx.floordiv(a, b))  # of two sizes: the run computes it, as for a Reshape to the rest
        return _untrapped(a, b, tirx.truncdiv, zero_like(a) - a)

    return pointwise(ctx, node.inputs, formula, "divide", keep_zero=True)


@emits("Mod")
def modulo(ctx: Emitter, node: ir.Node) -> Result:
    """The remainder with the sign of the divisor, or (`fmod`) of the dividend."""
    like_c = get_int(node, "fmod", 0) == 1

    def formula(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        if is_float(a):
            return _remainder(a, b) if like_c else _floating_modulo(a, b)
        zero = zero_like(a)
        rest = _untrapped(a, b, tirx.truncmod, zero)
        if like_c or is_unsigned(a):
            return rest
        if (fixed := static_int(b)) is not None and fixed > 0:
            return tirx.floormod(a, b)
        crossed = tirx.all(tirx.NE(rest, zero), _opposite(rest, b))
        return tirx.Select(crossed, rest + b, rest)

    return pointwise(ctx, node.inputs, formula, "mod")


@emits("Pow")
def power(ctx: Emitter, node: ir.Node) -> Result:
    """`x` to the power y, in the type of x; with integers involved it is computed in float64, as ONNX Runtime does."""

    def formula(x: tirx.Expr, y: tirx.Expr) -> tirx.Expr:
        exponent = _fixed(y)
        if exponent in (1, 2, 3):
            return reduce(operator.mul, [x] * int(exponent))
        if is_float(x) and not (is_float(y) and scalar_type(y) == "float64"):
            return tirx.pow(x, tirx.Cast(scalar_type(x), y))
        return tirx.Cast(scalar_type(x), tirx.pow(tirx.Cast("float64", x), tirx.Cast("float64", y)))

    return pointwise(ctx, node.inputs, formula, "power")


@emits("PRelu")
def prelu(ctx: Emitter, node: ir.Node) -> Result:
    """`x`, or slope * x where it is negative."""
    return pointwise(ctx, node.inputs, lambda x, slope: tirx.Select(x < zero_like(x), slope * x, x), "prelu")


@emits("Max", "Min")
def extremum(ctx: Emitter, node: ir.Node) -> Result:
    """The largest or smallest of the operands; NaN if one of them is NaN."""
    pick = largest if node.op_type == "Max" else smallest
    return pointwise(ctx, node.inputs, lambda *xs: reduce(pick, xs), node.op_type.lower())


@emits("Sum")
def total(ctx: Emitter, node: ir.Node) -> Result:
    """The sum of the operands."""
    return pointwise(ctx, node.inputs, lambda *xs: reduce(operator.add, xs), "sum")


@emits("Mean")
def mean(ctx: Emitter, node: ir.Node) -> Result:
    """The mean of the operands."""
    return pointwise(
        ctx, node.inputs, lambda *xs: reduce(operator.add, xs) / tirx.const(len(xs), scalar_type(xs[0])), "mean"
    )


@emits("Clip")
def clip(ctx: Emitter, node: ir.Node) -> Result:
    """`x` kept between two optional bounds; the upper one wins where they cross."""
    x, low, high = (*node.inputs, None, None)[:3]

    def formula(x: tirx.Expr, *bounds: tirx.Expr) -> tirx.Expr:
        given = list(bounds)
        if low is not None:
            bound = given.pop(0)
            x = tirx.Select(x < bound, bound, x)
        return tirx.Select(x > given[0], given[0], x) if given else x

    return pointwise(ctx, [x, low, high], formula, "clip")


_BITWISE: dict[str, Callable[[tirx.Expr, tirx.Expr], tirx.Expr]] = {
    "BitwiseAnd": tirx.bitwise_and,
    "BitwiseOr": tirx.bitwise_or,
    "BitwiseXor": tirx.bitwise_xor,
}


@emits(*_BITWISE)
def bitwise(ctx: Emitter, node: ir.Node) -> Result:
    """A function of the bits of two integers."""
    return pointwise(ctx, node.inputs, _BITWISE[node.op_type], node.op_type.lower())


@emits("BitwiseNot")
def bitwise_not(ctx: Emitter, node: ir.Node) -> Result:
    """Every bit flipped."""
    return pointwise(ctx, node.inputs, tirx.bitwise_not, "bitwise_not")


@emits("BitShift")
def bit_shift(ctx: Emitter, node: ir.Node) -> Result:
    """The bits of a moved by b places; all of them, where b is negative or not below the number of bits."""
    direction = get_str(node, "direction", "")
    if direction not in ("LEFT", "RIGHT"):
        raise Refused(f"direction {direction!r} is neither LEFT nor RIGHT")

    def formula(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
        bits = int(scalar_type(a).lstrip("uint"))
        inside = tirx.EQ(tirx.shift_right(b, tirx.const(bits.bit_length() - 1, scalar_type(b))), zero_like(b))
        places = tirx.Select(inside, b, zero_like(b))
        if direction == "LEFT":
            return tirx.Select(inside, tirx.shift_left(a, places), zero_like(a))
        filled = zero_like(a) if is_unsigned(a) else tirx.shift_right(a, tirx.const(bits - 1, scalar_type(a)))
        return tirx.Select(inside, tirx.shift_right(a, places), filled)

    return pointwise(ctx, node.inputs, formula, "bit_shift")


def largest(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """The larger of two scalars, or NaN if one is."""
    if not is_float(a):
        return tirx.max(a, b)
    return tirx.Select(tirx.any(a > b, tirx.isnan(a)), a, b)


def smallest(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """The smaller of two scalars, or NaN if one is."""
    if not is_float(a):
        return tirx.min(a, b)
    return tirx.Select(tirx.any(a < b, tirx.isnan(a)), a, b)


def _half_exp(x: tirx.Expr) -> tirx.Expr:
    return tirx.exp(x - tirx.const(math.log(2), scalar_type(x)))


def _untrapped(
    a: tirx.Expr, b: tirx.Expr, divide: Callable[[tirx.Expr, tirx.Expr], tirx.Expr], otherwise: tirx.Expr
) -> tirx.Expr:
    """An integer division; by 0 and -1, where it may trap, `otherwise`, which is what dividing by -1 gives.

    A branch, not a select: of a select, both sides are computed.
    """
    if static_int(b) not in (None, 0, -1):
        return divide(a, b)
    trap = tirx.EQ(b, zero_like(b))
    if not is_unsigned(b):
        trap = tirx.any(trap, tirx.EQ(b, -one_like(b)))
    return tirx.if_then_else(trap, otherwise, divide(a, b))


def _floating_modulo(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """The remainder with the sign of b, zeros included."""
    rest, zero = _remainder(a, b), zero_like(a)
    crossed = tirx.Select(_opposite(rest, b), rest + b, rest)
    return tirx.Select(tirx.EQ(rest, zero), tirx.copysign(zero, b), crossed)


def _remainder(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """C's fmod, which is exact."""
    dtype = scalar_type(a)
    return tirx.call_pure_extern(dtype, "fmod" if dtype == "float64" else "fmodf", a, b)


def _opposite(a: tirx.Expr, b: tirx.Expr) -> tirx.Expr:
    """Whether one is negative and the other is not."""
    zero = zero_like(a)
    return tirx.any(tirx.all(a < zero, b >= zero), tirx.all(a >= zero, b < zero))


def _fixed(x: tirx.Expr) -> float | None:
    if isinstance(x, tirx.Cast):
        return _fixed(x.value)
    return float(x.value) if isinstance(x, tirx.FloatImm | tirx.IntImm) else None
