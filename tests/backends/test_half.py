"""float16 and bfloat16 through compiled kernels: functions, comparisons, products, NaN, rounding."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from tests.backends.emitted import Array, emitted, normal
from tests.backends.running import parse

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


def test_rounding_is_to_even_and_a_nan_stays_one() -> None:
    model = parse("g (float[n] x) => (bfloat16[n] y) { y = Cast<to=16>(x) }")
    x = np.array([1.00390625, 1.01171875, 3.4e38, -np.inf, np.nan, -0.0], np.float32)
    worst = np.array([0x7FFFFFFF], np.uint32).view(np.float32)
    (y,) = emitted(model, [np.concatenate([x, worst])])
    np.testing.assert_array_equal(y[:4].astype(np.float32), x[:4].astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.isnan(y[[4, 6]].astype(np.float32)).all()
    assert np.signbit(y[5].astype(np.float32))
