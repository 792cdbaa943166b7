"""Element types that no processor computes in: 8-, 6- and 4-bit floats, 4- and 2-bit integers.

In a compiled function each element of such a tensor is one byte that holds its bits (as ml_dtypes keeps them). ONNX
only moves, casts and quantizes these types; this module reads such a byte as a number and rounds a number to such a
byte.

Formats: OCP 8-bit floating point (E4M3, E5M2), OCP Microscaling 1.0 (E2M1, E2M3, E3M2, E8M0), and the "FNUZ" forms of
arXiv:2206.02915.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from tvm import tirx

from backends.relax.scalars import cast

_Type = ir.DataType
_FLOAT_MANTISSA = 23
_FLOAT_BIAS = 127
_FLOAT_INFINITY = 0x7F800000
_SCALE_NAN = 255


@dataclass(frozen=True)
class FloatFormat:
    """A sign, `exponent` bits and `mantissa` bits.

    Attributes:
        exponent, mantissa: numbers of bits.
        bias: what is subtracted from the exponent's bits.
        largest: the bits of the largest finite number.
        infinity: the bits of infinity, if there is one.
        nan: the bits of NaN, if there is one; with `single_zero` they are those of -0.
        single_zero: there is no -0.
    """

    exponent: int
    mantissa: int
    bias: int
    largest: int
    infinity: int | None = None
    nan: int | None = None
    single_zero: bool = False

    @property
    def sign(self) -> int:
        """The sign's bit."""
        return 1 << (self.exponent + self.mantissa)

    @property
    def overflow(self) -> float:
        """What lies in the middle between the largest finite number and the next that there would be."""
        exponent, mantissa = divmod(self.largest, 1 << self.mantissa)
        return (1 + (mantissa + 0.5) / (1 << self.mantissa)) * 2.0 ** (exponent - self.bias)


FLOATS = {
    _Type.FLOAT8E4M3FN: FloatFormat(4, 3, 7, 0x7E, nan=0x7F),
    _Type.FLOAT8E4M3FNUZ: FloatFormat(4, 3, 8, 0x7F, nan=0x80, single_zero=True),
    _Type.FLOAT8E5M2: FloatFormat(5, 2, 15, 0x7B, infinity=0x7C, nan=0x7E),
    _Type.FLOAT8E5M2FNUZ: FloatFormat(5, 2, 16, 0x7F, nan=0x80, single_zero=True),
    _Type.FLOAT6E2M3: FloatFormat(2, 3, 1, 0x1F),
    _Type.FLOAT6E3M2: FloatFormat(3, 2, 3, 0x1F),
    _Type.FLOAT4E2M1: FloatFormat(2, 1, 1, 0x7),
}
INTEGERS = {_Type.INT4: (4, True), _Type.UINT4: (4, False), _Type.INT2: (2, True), _Type.UINT2: (2, False)}
"""Bits, and whether there is a sign."""


def is_narrow(dtype: ir.DataType | None) -> bool:
    """Whether elements of this type are carried as bytes."""
    return dtype in FLOATS or dtype in INTEGERS or dtype == _Type.FLOAT8E8M0


def widened(byte: tirx.Expr, dtype: ir.DataType) -> tirx.Expr:
    """The number that a byte stands for: int32 for integers, else float32."""
    bits = tirx.Cast("int32", byte)
    if dtype in INTEGERS:
        width, signed = INTEGERS[dtype]
        kept = bits & _int(2**width - 1)
        return tirx.shift_right(tirx.shift_left(kept, _int(32 - width)), _int(32 - width)) if signed else kept
    return _decode_scale(bits) if dtype == _Type.FLOAT8E8M0 else _decode_float(bits, FLOATS[dtype])


def narrowed(x: tirx.Expr, dtype: ir.DataType, *, saturate: bool = True, round_mode: str = "up") -> tirx.Expr:
    """The byte of a number: floats are rounded to the nearest even; integers lose what does not fit."""
    if dtype in INTEGERS:
        width, _ = INTEGERS[dtype]
        return tirx.Cast("uint8", tirx.Cast("int32", x) & _int(2**width - 1))
    single = cast(x, "float32")
    if dtype == _Type.FLOAT8E8M0:
        return tirx.Cast("uint8", _encode_scale(single, saturate=saturate, round_mode=round_mode))
    return tirx.Cast("uint8", _encode_float(single, FLOATS[dtype], saturate=saturate))


def _decode_float(bits: tirx.Expr, form: FloatFormat) -> tirx.Expr:
    magnitude = bits & _int(form.sign - 1)
    exponent = tirx.shift_right(magnitude, _int(form.mantissa))
    shifted = tirx.shift_left(magnitude, _int(_FLOAT_MANTISSA - form.mantissa))
    normal = _as_float(shifted + _int((_FLOAT_BIAS - form.bias) << _FLOAT_MANTISSA))
    small = tirx.Cast("float32", magnitude) * _float(2.0 ** (1 - form.bias - form.mantissa))
    value = tirx.Select(tirx.EQ(exponent, _int(0)), small, normal)
    if form.infinity is not None:
        value = tirx.Select(tirx.EQ(magnitude, _int(form.infinity)), _float(float("inf")), value)
        value = tirx.Select(magnitude > _int(form.infinity), _float(float("nan")), value)
    elif form.nan is not None and not form.single_zero:
        value = tirx.Select(tirx.EQ(magnitude, _int(form.nan)), _float(float("nan")), value)
    signed = tirx.Select(tirx.EQ(bits & _int(form.sign), _int(0)), value, -value)
    if form.single_zero and form.nan is not None:
        signed = tirx.Select(tirx.EQ(bits & _int(0xFF), _int(form.nan)), _float(float("nan")), signed)
    return signed


def _encode_float(x: tirx.Expr, form: FloatFormat, *, saturate: bool) -> tirx.Expr:
    """Conditions are on floats: TVM makes all integers in a comparison 64 bits wide, those of a `reinterpret` too."""
    bits = tirx.reinterpret("int32", x)
    size = tirx.abs(x)
    dropped = _FLOAT_MANTISSA - form.mantissa
    magnitude = bits & _int(0x7FFFFFFF)
    odd = tirx.shift_right(magnitude, _int(dropped)) & _int(1)
    rounded = tirx.shift_right(magnitude + _int((1 << (dropped - 1)) - 1) + odd, _int(dropped))
    normal = rounded - _int((_FLOAT_BIAS - form.bias) << form.mantissa)
    steps = tirx.nearbyint(size * _float(2.0 ** (form.bias + form.mantissa - 1)))
    small = tirx.Cast("int32", tirx.min(steps, _float(2.0**form.mantissa)))
    code = tirx.Select(size < _float(2.0 ** (1 - form.bias)), small, normal)
    beyond = form.largest if saturate or form.nan is None else form.infinity or form.nan
    limit = _float(form.overflow)
    code = tirx.Select(size >= limit if form.largest % 2 else size > limit, _int(beyond), code)
    if form.nan is not None:
        code = tirx.Select(tirx.isnan(x), _int(form.nan), code)
    sign = tirx.shift_right(bits, _int(31)) & _int(form.sign)
    if form.single_zero:
        sign = tirx.Select(tirx.EQ(steps, _float(0.0)), _int(0), sign)
    return code | sign if form.nan is not None else tirx.Select(tirx.isnan(x), _int(form.sign), code | sign)


def _decode_scale(bits: tirx.Expr) -> tirx.Expr:
    """2 to the power bits - 127; the smallest is a subnormal float32."""
    value = _as_float(tirx.shift_left(bits, _int(_FLOAT_MANTISSA)))
    value = tirx.Select(tirx.EQ(bits, _int(0)), _float(2.0**-_FLOAT_BIAS), value)
    return tirx.Select(tirx.EQ(bits, _int(_SCALE_NAN)), _float(float("nan")), value)


def _encode_scale(x: tirx.Expr, *, saturate: bool, round_mode: str) -> tirx.Expr:
    bits = tirx.reinterpret("int32", x) & _int(0x7FFFFFFF)
    exponent = tirx.shift_right(bits, _int(_FLOAT_MANTISSA))
    rest = bits & _int((1 << _FLOAT_MANTISSA) - 1)
    half = _int(1 << (_FLOAT_MANTISSA - 1))
    subnormal_half = tirx.all(tirx.EQ(exponent, _int(0)), rest <= half)
    ups = {
        "up": tirx.all(rest > _int(0), tirx.Not(subnormal_half)),
        "down": tirx.const(False, "bool"),
        "nearest": tirx.all(rest >= half, tirx.Not(subnormal_half)),
    }
    code = exponent + tirx.Select(ups[round_mode], _int(1), _int(0))
    if saturate:
        code = tirx.min(code, _int(_SCALE_NAN - 1))
    else:
        code = tirx.Select(tirx.EQ(bits, _int(0)), _int(_SCALE_NAN), tirx.min(code, _int(_SCALE_NAN)))
    return tirx.Select(bits > _int(_FLOAT_INFINITY), _int(_SCALE_NAN), code)


def _as_float(bits: tirx.Expr) -> tirx.Expr:
    return tirx.reinterpret("float32", bits)


def _int(value: int) -> tirx.Expr:
    return tirx.const(value, "int32")


def _float(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")
