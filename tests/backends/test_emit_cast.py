"""Casts: what is true, what wraps, and every number of the narrow types."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.backends.emitted import agrees, emitted, reference
from tests.backends.running import parse

NARROW_FLOATS = ["float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"]


def number(name: str) -> int:
    return int(onnx.TensorProto.DataType.Value(name.upper()))


def array_type(name: str) -> np.dtype:
    return np.dtype(ir.DataType(number(name)).numpy())


def test_to_and_from_bool() -> None:
    model = parse(
        "g (float[5] x, int32[5] i, bool[5] b) => (bool[5] p, bool[5] q, float[5] f, int64[5] n)"
        " { p = Cast<to=9>(x) q = Cast<to=9>(i) f = Cast<to=1>(b) n = Cast<to=7>(b) }"
    )
    x = np.array([0.0, -0.0, 0.25, np.nan, -3], np.float32)
    agrees(model, [x, np.array([0, 2, 256, -1, 0], np.int32), np.array([1, 0, 1, 1, 0], bool)])


def test_integers_lose_their_upper_bits_and_floats_their_fraction() -> None:
    model = parse(
        "g (int32[4] i, float[4] x) => (int8[4] a, uint8[4] b, int32[4] c, int16[4] d)"
        " { a = Cast<to=3>(i) b = Cast<to=2>(i) c = Cast<to=6>(x) d = Cast<to=5>(x) }"
    )
    i, x = np.array([200, -1, 300, 65], np.int32), np.array([1.9, -1.9, 0.5, -0.5], np.float32)
    agrees(model, [i, x], [i.astype(np.int8), i.astype(np.uint8), x.astype(np.int32), x.astype(np.int16)])


def test_float16_and_bfloat16_round_to_even() -> None:
    model = parse("g (float[n] x) => (float16[n] h, bfloat16[n] b) { h = Cast<to=10>(x) b = Cast<to=16>(x) }")
    x = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 65504, 65520, 1e-8, np.nan], np.float32)
    with np.errstate(over="ignore"):
        agrees(model, [x], [x.astype(np.float16), x.astype(ml_dtypes.bfloat16)])


@pytest.mark.parametrize("name", NARROW_FLOATS)
def test_every_narrow_float_is_read(name: str) -> None:
    model = parse(f"g ({name}[256] x) => (float[256] y, float16[256] h) {{ y = Cast<to=1>(x) h = Cast<to=10>(x) }}")
    x = np.arange(256, dtype=np.uint8).view(array_type(name))
    agrees(model, [x], [x.astype(np.float32), x.astype(np.float16)])


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("name", NARROW_FLOATS)
def test_narrow_floats_are_rounded_as_the_reference_does(name: str, saturate: int) -> None:
    model = parse(f"g (float[n] x) => ({name}[n] y) {{ y = Cast<to={number(name)}, saturate={saturate}>(x) }}")
    exact = np.arange(256, dtype=np.uint8).view(array_type(name)).astype(np.float32)
    halves = (exact[:-1] + exact[1:]) / 2
    x = np.concatenate([exact, halves, [np.inf, -np.inf, np.nan, 1e9, -1e9, 1e-9, -1e-9, 0.0, -0.0]]).astype(np.float32)
    ours = emitted(model, [x])[0].astype(np.float32)
    theirs = reference(model, [x])[0].astype(np.float32)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("name", "bits"), [("int4", 4), ("uint4", 4), ("int2", 2), ("uint2", 2)])
def test_narrow_integers(name: str, bits: int) -> None:
    code = number(name)
    model = parse(
        f"g ({name}[n] x, float[m] z) => (float[n] y, {name}[m] w) {{ y = Cast<to=1>(x) w = Cast<to={code}>(z) }}",
        opset=25,
    )
    x = np.arange(2**bits, dtype=np.uint8).view(array_type(name))
    low = -(2 ** (bits - 1)) if name.startswith("i") else 0
    z = np.arange(low, low + 2**bits).astype(np.float32)
    ours, back = emitted(model, [x, z])
    np.testing.assert_array_equal(ours, x.astype(np.float32))
    np.testing.assert_array_equal(back.astype(np.float32), z)


def test_narrow_types_are_moved_as_they_are() -> None:
    model = parse("g (int4[2,3] x) => (int4[3,2] y) { y = Transpose(x) }")
    x = np.array([[-8, 7, 1], [0, -1, 3]]).astype(ml_dtypes.int4)
    assert np.array_equal(emitted(model, [x])[0].astype(np.int8), x.T.astype(np.int8))


def test_bits_in_another_type() -> None:
    model = parse("g (float[3] x) => (int32[3] y) { y = BitCast<to=6>(x) }", opset=26)
    x = np.array([1.0, -0.0, np.inf], np.float32)
    assert np.array_equal(emitted(model, [x])[0], x.view(np.int32))
