"""convert-float{to=float16}: what may not fit its range stays float32, and masks are made to fit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.reference import run_reference
from passes.convert_float import ConvertFloat
from tests.passes.bfloat16_graphs import W, converted, dtype, elements

HALVES = ConvertFloat(to="float16")
HALF, WIDE = ir.DataType.FLOAT16, ir.DataType.FLOAT


def after(body: str, constants: str = "", inputs: str = "") -> ir.Model:
    """A product `a`, and what is computed from it up to `b`, which another product reads."""
    given = f", {constants}" if constants else ""
    text = f"g (float[N,4] x{inputs}) => (float[N,4] y) <{W}{given}> {{ a = MatMul(x, w) {body} y = MatMul(b, w) }}"
    return converted(text, HALVES)


def test_products_and_what_lies_between_them() -> None:
    model = after("b = Relu(a)")
    assert [dtype(model, name) for name in ("a", "b", "w", "y")] == [HALF, HALF, HALF, WIDE]
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "Relu", "MatMul", "Cast"]


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("s = Mul(a, a) b = Sub(s, a)", ""),
        ("s = Pow(a, two) b = Sub(s, a)", "float two = {2}"),
        ("s = ReduceSum(a, last) b = Sub(a, s)", "int64[1] last = {1}"),
        ("s = ReduceSumSquare(a, last) b = Sub(a, s)", "int64[1] last = {1}"),
        ("s = ReduceL2(a, last) b = Div(a, s)", "int64[1] last = {1}"),
        ("s = Add(a, eps) b = Div(a, s)", "float eps = {1e-12}"),
        ("s = Max(a, eps) b = Div(a, s)", "float[1] eps = {1e-7}"),
        ("s = Mul(a, big) b = Tanh(s)", "float big = {1e5}"),
        ("s = Add(a, big) b = Tanh(s)", "float[4] big = {0,0,-1e9,0}"),
    ],
)
def test_what_may_leave_the_range_stays(body: str, constants: str) -> None:
    model = after(body, constants)
    assert dtype(model, "s") == WIDE and dtype(model, "a") == HALF
    for value in model.graph.initializers.values():
        if value.name in ("eps", "big"):
            assert value.dtype == WIDE and elements(model, value.name).any()


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("s = Mul(a, x) b = Relu(s)", ""),
        ("s = ReduceMean(a, last) b = Sub(a, s)", "int64[1] last = {1}"),
        ("s = Add(a, eps) b = Div(a, s)", "float eps = {1e-3}"),
        ("s = Add(a, small) b = Tanh(s)", "float[4] small = {1e-9,1,2,3}"),
        ("s = Mul(a, zero) b = Tanh(s)", "float zero = {0}"),
        ("s = Mul(a, most) b = Tanh(s)", "float most = {65504}"),
        ("s = LayerNormalization(a, scale) b = Relu(s)", "float[4] scale = {1,1,1,1}"),
    ],
)
def test_what_fits_does_not_stay(body: str, constants: str) -> None:
    assert dtype(after(body, constants), "s") == HALF


def test_a_weight_beyond_the_range_stays() -> None:
    model = converted("g (float[N,2] x) => (float[N,1] y) <float[2,1] w = {1, 7e4}> { y = MatMul(x, w) }", HALVES)
    assert [node.op_type for node in model.graph] == ["MatMul"] and dtype(model, "w") == WIDE


def test_a_mask_is_made_smaller() -> None:
    model = after(
        "m = Where(c, zero, least) s = Add(a, m) b = Softmax(s)",
        "float zero = {0}, float least = {-3e38}",
        ", bool[N,4] c",
    )
    assert dtype(model, "s") == dtype(model, "m") == HALF
    assert elements(model, "least") == -(2.0**14)
    x, hidden = np.ones((2, 4), np.float32), np.zeros((2, 4), bool)
    (y,) = run_reference(model, [x, hidden])
    assert np.isfinite(y).all()  # all scores are masked: as infinities they would give NaN


def test_a_score_that_is_replaced() -> None:
    model = after("s = Where(c, a, least) b = Softmax(s)", "float least = {-1e9}", ", bool[N,4] c")
    assert dtype(model, "s") == HALF and elements(model, "least") == -(2.0**14)


def test_a_mask_that_is_also_an_output_stays() -> None:
    model = converted(
        f"""g (float[N,4] x, bool[N,4] c) => (float[N,4] y, float[N,4] m)
        <{W}, float zero = {{0}}, float least = {{-1e9}}> {{
        m = Where(c, zero, least) a = MatMul(x, w) s = Add(a, m) b = Softmax(s) y = MatMul(b, w) }}""",
        HALVES,
    )
    x, hidden = np.ones((2, 4), np.float32), np.zeros((2, 4), bool)
    assert (run_reference(model, [x, hidden])[1] == np.float32(-1e9)).all()


def test_an_infinite_mask_stays_infinite() -> None:
    model = after("s = Add(a, m) b = Softmax(s)", "float[4] m = {0,0,0,-inf}")
    assert dtype(model, "s") == HALF and elements(model, "m")[-1] == -np.inf
