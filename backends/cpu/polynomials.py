"""Transcendental functions as arithmetic that vectorises, where the C library would be called element by element.

Float32. The polynomials and quotients of polynomials are least-squares fits at Chebyshev nodes, their weights chosen so
that the largest relative error is smallest (Lawson 1961); the errors against the exact functions are held by a test.
NaN goes in and comes out; infinities and overflow give what IEEE says. The reductions are the textbook ones (Muller,
Elementary Functions, ch. 11).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm_ffi
from tvm import tirx
from tvm.ir import Call

from backends.relax.loops import Expr, Var

_EXP = (0.5000000014285071, 0.1666657335807829, 0.041666456797556435, 0.008363776466951302, 0.0013934543238092092)
_EXP_SHORT = (0.499991357740866, 0.16666888226140805, 0.041899499495397424, 0.008333832249625632)
_TANH_ABOVE = (
    0.99999998342338,
    0.13394023382373743,
    0.003511057234905205,
    2.0865452615146386e-05,
    1.3714757930026886e-08,
)
_TANH_BELOW = (
    1.0,
    0.46727342193925975,
    0.025935744227525835,
    0.0003311003298754576,
    7.922823494865602e-07,
)
_TANH_BOUND = 8.8
"""From here on it is 1 in float32."""
_ERF_ABOVE = (
    1.1283791509929668,
    0.18790028617903473,
    0.052480038054354625,
    0.0036740375855766625,
    0.00028567655448990777,
    2.1082527326419305e-06,
)
_ERF_BELOW = (
    1.0,
    0.49985516713505923,
    0.11313001987319989,
    0.01478510886153842,
    0.0011455255854188392,
    3.873172614539915e-05,
)
_ERF_BOUND = 3.85
"""From here on it is 1 to within half a unit in the last place."""
_LOG = (0.6666666655547848, 0.4000012218744525, 0.28550762084030795, 0.23332223857250878)
_SIN = (-0.16666666663744298, 0.008333331831472548, -0.00019840063401587325, 2.724690732182578e-06)
_COS = (0.041666666664228226, -0.0013888887635829408, 2.4800580858852648e-05, -2.72984352073577e-07)
_HALF_PI_HIGH = 1.5707963267341256
"""Its last 20 bits are zero, so that small multiples are exact."""
_HALF_PI_LOW = 6.077100506506192e-11
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4


def _f(value: float) -> Expr:
    return tirx.const(value, "float32")


def _d(value: float) -> Expr:
    return tirx.const(value, "float64")


def let(value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """Compute a value once."""
    var = Var("t", value.ty)
    return tirx.Let(var, value, body(var))


def _horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    result = _f(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + _f(c)
    return result


def _power_of_two(n: Expr) -> Expr:
    """2**n for an int32 n in [-126, 127]."""
    return tirx.reinterpret("float32", tirx.shift_left(n + tirx.const(127, "int32"), tirx.const(23, "int32")))


def _exp_in_range(x: Expr) -> Expr:
    """Exp for -87 <= x <= 88."""

    def reduced(n: Expr) -> Expr:
        r = x - n * _f(_LN2_HIGH) - n * _f(_LN2_LOW)
        return let(r, lambda r: (r * r * _horner(r, _EXP) + r + _f(1.0)) * _power_of_two(tirx.Cast("int32", n)))

    return let(tirx.round(x * _f(1.0 / math.log(2.0))), reduced)


def exp(x: Expr) -> Expr:
    """e**x, within 2 units in the last place, subnormal results and overflow included: it is scaled in two steps."""

    def scaled(n: Expr, r: Expr) -> Expr:
        half = tirx.shift_right(n, tirx.const(1, "int32"))
        return (r * r * _horner(r, _EXP) + r + _f(1.0)) * _power_of_two(half) * _power_of_two(n - half)

    def reduced(x: Expr, n: Expr) -> Expr:
        r = x - n * _f(_LN2_HIGH) - n * _f(_LN2_LOW)
        return let(r, lambda r: let(tirx.Cast("int32", n), lambda k: scaled(k, r)))

    def of(x: Expr) -> Expr:
        bounded = tirx.Max(tirx.Min(x, _f(89.0)), _f(-104.0))
        value = let(bounded, lambda b: let(tirx.round(b * _f(1.0 / math.log(2.0))), lambda n: reduced(b, n)))
        return tirx.Select(tirx.isnan(x), x, value)

    return let(x, of)


def exp_of_nonpositive(x: Expr) -> Expr:
    """e**x for x <= 0, in half the operations: what weighs nothing beside a weight of 1 is less exact, or zero.

    The absolute error is below 2**-22; below -87 the result is 0. Adding 1.5 * 2**23 rounds to a whole number, which
    then stands in the lowest bits (Muller, Elementary Functions, section 11.1).
    """
    shifter = _f(1.5 * 2**23 + 127)

    def scaled(r: Expr, t: Expr) -> Expr:
        power = tirx.reinterpret("float32", tirx.shift_left(tirx.reinterpret("int32", t), tirx.const(23, "int32")))
        return let(r, lambda r: _horner(r, (1.0, 1.0, *_EXP_SHORT))) * power

    def of(x: Expr) -> Expr:
        rounded = x * _f(1.0 / math.log(2.0)) + shifter
        value = let(rounded, lambda t: scaled(x - (t - shifter) * _f(math.log(2.0)), t))
        return tirx.Select(x < _f(-87.0), _f(0.0), value)

    return let(x, of)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e**-x)."""

    def of(x: Expr) -> Expr:
        e = let(tirx.Max(tirx.Min(_f(0.0) - x, _f(88.0)), _f(-87.0)), _exp_in_range)
        return tirx.Select(tirx.isnan(x), x, _f(1.0) / (_f(1.0) + e))

    return let(x, of)


def _odd_quotient(x: Expr, bound: float, above: Sequence[float], below: Sequence[float]) -> Expr:
    """An odd function as x * P(x**2) / Q(x**2) up to the bound, its value there beyond; between -1 and 1.

    One form for all arguments: a vector of them needs both sides of a choice computed.
    """

    def of(x: Expr) -> Expr:
        def quotient(b: Expr) -> Expr:
            return let(b * b, lambda s: b * _horner(s, above) / _horner(s, below))

        value = let(tirx.Max(tirx.Min(x, _f(bound)), _f(-bound)), quotient)
        return tirx.Select(tirx.isnan(x), x, tirx.Max(tirx.Min(value, _f(1.0)), _f(-1.0)))

    return let(x, of)


def tanh(x: Expr) -> Expr:
    """Hyperbolic tangent, within 5 units in the last place."""
    return _odd_quotient(x, _TANH_BOUND, _TANH_ABOVE, _TANH_BELOW)


def erf(x: Expr) -> Expr:
    """The error function, within 5 units in the last place."""
    return _odd_quotient(x, _ERF_BOUND, _ERF_ABOVE, _ERF_BELOW)


def log(x: Expr) -> Expr:
    """Natural logarithm; of the mantissa in [sqrt(1/2), sqrt(2)) by its atanh series, plus the exponent."""
    infinity = _f(math.inf)

    def of(x: Expr) -> Expr:
        tiny = x < _f(1.1754943508222875e-38)
        scaled = tirx.Select(tiny, x * _f(8388608.0), x)

        def from_bits(bits: Expr) -> Expr:
            shifted = bits - tirx.const(0x3F3504F3, "int32")
            exponent = tirx.shift_right(shifted, tirx.const(23, "int32"))
            mantissa = tirx.reinterpret("float32", bits - tirx.shift_left(exponent, tirx.const(23, "int32")))
            count = tirx.Cast("float32", exponent) - tirx.Select(tiny, _f(23.0), _f(0.0))

            def series(f: Expr) -> Expr:
                def of_s(s: Expr) -> Expr:
                    odd = let(s * s, lambda u: s * u * _horner(u, _LOG))
                    return count * _f(_LN2_HIGH) + (count * _f(_LN2_LOW) + odd + s + s)

                return let(f / (f + _f(2.0)), of_s)

            return let(mantissa - _f(1.0), series)

        value = let(tirx.reinterpret("int32", scaled), from_bits)
        regular = tirx.Select(x == _f(0.0), _f(-math.inf), tirx.Select(x < _f(0.0), _f(math.nan), value))
        return tirx.Select(x < infinity, regular, x)

    return let(x, of)


def _circular(x: Expr, quadrants: int) -> Expr:
    """Sine of x plus so many quarters of a turn. Whole quarters are taken off in float64, good to 1e6 and beyond."""

    def of_rest(rest: Expr, quadrant: Expr) -> Expr:
        square = rest * rest
        sine = let(square, lambda s: rest + rest * s * _horner(s, _SIN))
        cosine = let(square, lambda s: _f(1.0) - _f(0.5) * s + s * s * _horner(s, _COS))
        value = tirx.Select((quadrant & tirx.const(1, "int32")) == tirx.const(0, "int32"), sine, cosine)
        return let(value, lambda v: tirx.Select(quadrant < tirx.const(2, "int32"), v, _f(0.0) - v))

    def of_turns(y: Expr, k: Expr) -> Expr:
        rest = tirx.Cast("float32", (y - k * _d(_HALF_PI_HIGH)) - k * _d(_HALF_PI_LOW))
        shifted = k + _d(float(quadrants))
        quadrant = tirx.Cast("int32", shifted - _d(4.0) * tirx.floor(shifted * _d(0.25)))
        return let(rest, lambda r: let(quadrant, lambda q: of_rest(r, q)))

    return let(tirx.Cast("float64", x), lambda y: let(tirx.round(y * _d(2.0 / math.pi)), lambda k: of_turns(y, k)))


def sin(x: Expr) -> Expr:
    """Sine."""
    return let(x, lambda x: tirx.Select(x == _f(0.0), x, _circular(x, 0)))


def cos(x: Expr) -> Expr:
    """Cosine."""
    return let(x, lambda x: _circular(x, 1))


FUNCTIONS: dict[str, Callable[[Expr], Expr]] = {
    "exp": exp,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "erf": erf,
    "log": log,
    "sin": sin,
    "cos": cos,
}


def is_function(node: Call) -> bool:
    """Whether a call is one of the functions that `expand` knows."""
    return function_name(node) in FUNCTIONS and len(node.args) == 1


def function_name(node: Call) -> str:
    """What TVM calls the operator of a call, without its dialect."""
    return str(getattr(node.op, "name", "")).rpartition(".")[2]


def expand(expr: Expr) -> Expr:
    """The expression with float32 transcendentals replaced by polynomials (and float16 ones computed in float32).

    The result binds variables of its own, so it must be used in one place only: expand last, once for each use.
    """

    def call(node: Call) -> Expr:
        name = function_name(node)
        if name == "nearbyint":  # TVM vectorises `round`, which LLVM takes for the same (halves to even), but not this
            return tirx.round(node.args[0])
        if not is_function(node):
            return node
        function, dtype = FUNCTIONS[name], str(node.ty.dtype)
        if dtype == "float32":
            return function(node.args[0])
        if dtype in ("float16", "bfloat16"):
            return tirx.Cast(dtype, function(tirx.Cast("float32", node.args[0])))
        return node

    return tvm_ffi.structural_map(expr, (Call, call))
