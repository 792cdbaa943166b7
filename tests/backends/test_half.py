"""float16 and bfloat16 through compiled kernels: functions, comparisons, products, NaN, rounding."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from optimizer.target import Target
from tests.backends.bfloat16 import TARGETS, usable
from tests.backends.emitted import RNG, Array, emitted, normal
from tests.backends.running import compiled, parse

BODIES: dict[str, Callable[[Array], Array]] = {
    "y = Exp(x)": lambda x: np.exp(x),
    "y = Softmax(x)": lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True),
    "t = Mul(x, x) u = Add(t, x) y = Tanh(u)": lambda x: np.tanh(x * x + x),
    "c = Greater(x, n) y = Where(c, x, n)": lambda x: np.maximum(x, -x),
    "y = Celu<alpha=0.5>(x)": lambda x: np.maximum(x, 0) + np.minimum(0, 0.5 * (np.exp(x / 0.5) - 1)),
    "t = Transpose(x) y = MatMul(x, t)": lambda x: x @ x.T,
    "y = ReduceSum<keepdims=1>(x, a)": lambda x: x.sum(1, keepdims=True),
}
TYPES = {"float16": (np.dtype(np.float16), 2.0**-10), "bfloat16": (np.dtype(ml_dtypes.bfloat16), 2.0**-7)}
"""Name in ONNX's text -> numpy's type, and the distance from 1 to the next number."""


@pytest.mark.parametrize("body", list(BODIES))
@pytest.mark.parametrize("dtype", list(TYPES))
def test_results_are_rounded_once(dtype: str, body: str) -> None:
    kind, unit = TYPES[dtype]
    x = normal(6, 400).astype(kind)
    wanted = BODIES[body](x.astype(np.float64))
    rows, columns = wanted.shape
    text = f"g ({dtype}[6,400] x) => ({dtype}[{rows},{columns}] y) {{ n = Neg(x) {body} }}"
    (y,) = emitted(parse(text, {"a": np.array([1])}), [x])
    assert y.dtype == kind
    np.testing.assert_allclose(y.astype(np.float64), wanted, rtol=unit, atol=unit)


@pytest.mark.parametrize("dtype", list(TYPES))
def test_what_is_read_in_the_same_kernel_is_not_rounded(dtype: str) -> None:
    kind, _ = TYPES[dtype]
    x = normal(6, 400).astype(kind)
    wide = x.astype(np.float32)
    (y,) = emitted(parse(f"g ({dtype}[6,400] x) => ({dtype}[6,400] y) {{ t = Mul(x, x) y = Sub(t, x) }}"), [x])
    np.testing.assert_array_equal(y, (wide * wide - wide).astype(kind))


@pytest.mark.parametrize(("dtype", "number"), [("float16", 10), ("bfloat16", 16)])
def test_a_conversion_is_there_to_round(dtype: str, number: int) -> None:
    kind, _ = TYPES[dtype]
    x = normal(6, 400)
    body = f"t = Mul(x, x) h = Cast<to={number}>(t) y = Cast<to=1>(h)"
    (y,) = emitted(parse(f"g (float[6,400] x) => (float[6,400] y) {{ {body} }}"), [x])
    np.testing.assert_array_equal(y, (x * x).astype(kind).astype(np.float32))


@pytest.mark.parametrize("dtype", list(TYPES))
def test_the_bits_are_those_of_the_rounded_number(dtype: str) -> None:
    kind, _ = TYPES[dtype]
    x = normal(6, 400).astype(kind)
    model = parse(f"g ({dtype}[6,400] x) => (int16[6,400] y) {{ t = Mul(x, x) y = BitCast<to=5>(t) }}", opset=26)
    (y,) = emitted(model, [x])
    np.testing.assert_array_equal(y, (x.astype(np.float32) ** 2).astype(kind).view(np.int16))


@pytest.mark.parametrize("target", TARGETS)
def test_every_rounding_is_that_of_numpy(target: str) -> None:
    bits = RNG.integers(0, 1 << 32, 4000, dtype=np.uint64).astype(np.uint32)
    halfway = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    x = np.concatenate([bits, halfway]).view(np.float32)
    x = x[~(np.abs(x) < np.finfo(np.float32).tiny)]
    model = parse("g (float[n] x) => (bfloat16[n] y) { y = Cast<to=16>(x) }")
    (y,) = compiled(model, usable(target)).run([x], 1)
    with np.errstate(invalid="ignore", over="ignore"):
        wanted = x.astype(ml_dtypes.bfloat16)
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(y.view(np.uint16)[numbers], wanted.view(np.uint16)[numbers])
    assert np.isnan(y.astype(np.float32)[~numbers]).all()


def test_numbers_below_the_normal_ones_are_zero_or_rounded() -> None:
    x = np.array([1e-39, -1e-39, 9.2e-41], np.float32)
    model = parse("g (float[n] x) => (bfloat16[n] y) { y = Cast<to=16>(x) }")
    for target in TARGETS[:2]:
        (y,) = compiled(model, usable(target)).run([x], 1)
        cpu = Target.parse(target).cpu
        assert cpu is not None
        wanted = x.astype(ml_dtypes.bfloat16) * np.float32(0 if cpu.bfloat16 else 1)
        np.testing.assert_array_equal(y.astype(np.float32), wanted.astype(np.float32))


def test_rounding_is_to_even_and_a_nan_stays_one() -> None:
    model = parse("g (float[n] x) => (bfloat16[n] y) { y = Cast<to=16>(x) }")
    x = np.array([1.00390625, 1.01171875, 3.4e38, -np.inf, np.nan, -0.0], np.float32)
    worst = np.array([0x7FFFFFFF], np.uint32).view(np.float32)
    (y,) = emitted(model, [np.concatenate([x, worst])])
    np.testing.assert_array_equal(y[:4].astype(np.float32), x[:4].astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.isnan(y[[4, 6]].astype(np.float32)).all()
    assert np.signbit(y[5].astype(np.float32))
