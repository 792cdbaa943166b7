"""smooth-quant."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.calibration import Samples
from optimizer.errors import InputError, PipelineError
from optimizer.ir.near_miss import RewriteResult
from optimizer.pass_manager import parse_pipeline
from optimizer.reference import run_reference
from optimizer.testing import check_pass
from passes.quantize_int8 import QuantizeInt8
from passes.registry import PASSES
from passes.smooth_quant import SmoothQuant
from tests.passes.int8_graphs import RNG, error, graph, operators, static

X = RNG.standard_normal((600, 16)).astype(np.float32)
OUTLIERS = X * np.array([100, 0.1] + [1] * 14, np.float32)
SCALE = np.array([60, 0.2] + [1] * 14, np.float32)
PLAIN = "g (float[N,16] x) => (float[N,12] y) { y = Gemm(x, w, b) }"
NORM = "g (float[N,16] x) => (float[N,12] y) { l = LayerNormalization(x, n, m) y = MatMul(l, w) }"


def smooth(model: ir.Model, *sets: Any, alpha: float = 0.5) -> SmoothQuant:
    return SmoothQuant(alpha, Samples.of(model.graph, [*sets] or [X]))


def normalized(text: str = NORM) -> ir.Model:
    return graph(text, n=SCALE, m=SCALE / 7)


def test_in_front_of_a_product_is_a_mul() -> None:
    model = graph(PLAIN)
    result = check_pass(smooth(model, OUTLIERS), model)
    assert operators(result) == ["Mul", "Gemm"]
    factor, weight = (array(result, index) for index in (0, 1))
    expected = np.sqrt(np.abs(OUTLIERS).max(0) / np.abs(array(model, 0)).max(1))
    np.testing.assert_allclose(1 / factor, expected, rtol=1e-5)
    # Both are as large now.
    np.testing.assert_allclose(np.abs(OUTLIERS * factor).max(0), np.abs(weight).max(1), rtol=1e-5)


def array(model: ir.Model, number: int) -> np.ndarray:
    """The second input of a node."""
    value = model.graph[number].inputs[1]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


@pytest.mark.parametrize(
    "text",
    [
        NORM,
        NORM.replace("LayerNormalization(x, n, m)", "LayerNormalization<axis = 1>(x, n)"),
        NORM.replace("LayerNormalization(x, n, m)", "RMSNormalization(x, n)"),
        NORM.replace("=> (float[N,12] y)", "=> (float[N,12] y, float[N,12] z)").replace(
            "y = MatMul(l, w)", "y = MatMul(l, w) z = Gemm<transB = 1>(l, t)"
        ),
    ],
)
def test_a_normalization_takes_the_factors(text: str) -> None:
    model = normalized(text)
    result = check_pass(smooth(model), model)
    assert operators(result) == operators(model)
    assert result.graph[0].outputs[0].name == "l_smooth"
    (scaled,) = run_reference(with_output(result, result.graph[0].outputs[0]), [X])[-1:]
    assert np.abs(scaled).max() < 0.4 * 60


def with_output(model: ir.Model, value: ir.Value) -> ir.Model:
    model.graph.outputs.append(value)
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([None, 16])
    return model


@pytest.mark.parametrize(
    "text",
    [
        NORM.replace("y = MatMul(l, w)", "a = MatMul(l, w) s = ReduceMax(l) y = Add(a, s)"),
        NORM.replace("=> (", "=> (float[N,16] l, "),
        NORM.replace("float[N,16] x", "float[N,16] x, float[16] r").replace("n, m", "r, m"),
        NORM.replace("x, n, m", "x, n, r").replace("float[N,16] x", "float[N,16] x, float[16] r"),
        NORM.replace("LayerNormalization(x", "LayerNormalization<axis = 0>(x")
        .replace("[N,", "[600,")
        .replace("n, m", "f"),
    ],
)
def test_a_normalization_that_must_stay_is_followed_by_a_mul(text: str) -> None:
    model = graph(text, n=SCALE, m=SCALE / 7, f=np.tile(SCALE, (600, 1)))
    inputs = [X, SCALE][: len(model.graph.inputs)]
    result = check_pass(smooth(model, tuple(inputs)), model)
    assert operators(result)[:2] == ["LayerNormalization", "Mul"]


def test_products_that_read_the_same_share_the_factors() -> None:
    text = "g (float[N,16] x) => (float[N,12] y, float[N,12] z) { y = MatMul(x, w) z = Gemm<transB = 1>(x, t, b) }"
    model = graph(text)
    assert operators(check_pass(smooth(model, OUTLIERS), model)) == ["Mul", "MatMul", "Gemm"]


def test_what_is_smooth_stays() -> None:
    weight = np.ones((16, 12), np.float32)
    model = graph("g (float[N,16] x) => (float[N,12] y) { y = MatMul(x, e) }", e=weight)
    even = np.ones((512, 16), np.float32)
    assert not smooth(model, even)(model.clone()).modified
    # A channel that is zero throughout has no factor.
    assert not smooth(model, even * np.array([0] + [1] * 15, np.float32))(model.clone()).modified
    assert operators(smooth(model, even * np.array([2] + [1] * 15, np.float32))(model.clone()).model) == [
        "Mul",
        "MatMul",
    ]


def test_few_rows_say_too_little() -> None:
    model = graph(PLAIN)
    result = smooth(model, OUTLIERS[:300], OUTLIERS[300:511])(model.clone())
    assert isinstance(result, RewriteResult) and not result.modified
    assert [miss.reason for miss in result.near_misses] == ["calibration gives 511 rows of 'x', 512 are needed"]
    assert smooth(model, OUTLIERS[:300], OUTLIERS[300:512])(model.clone()).modified


def test_convolutions_and_other_types_stay() -> None:
    for text in (
        "g (float[N,3,9,9] x) => (float[N,16,7,7] y) { y = Conv(x, k) }",
        "g (float[N,16] x, float[16,12] v) => (float[N,12] y) { y = MatMul(x, v) }",
    ):
        model = read_free(text)
        assert not SmoothQuant(samples=None)(model).modified


def read_free(text: str) -> ir.Model:
    from tests.passes.transform import read

    return graph(text) if "k)" in text else read(text)


@pytest.mark.parametrize("dynamic", [False, True])
def test_outliers_cost_less(dynamic: bool) -> None:
    model = graph(PLAIN)
    smoothed = smooth(model, OUTLIERS)(model.clone()).model
    loss = []
    for form in (model, smoothed):
        pass_ = QuantizeInt8(dynamic=True) if dynamic else static(form, OUTLIERS)
        loss.append(error_without_outlier(model, pass_(form.clone()).model))
    assert loss[1] < 0.5 * loss[0]


def error_without_outlier(model: ir.Model, result: ir.Model) -> float:
    """The outlier itself hides what is lost of the others in the error of the result."""
    (expected,), (found,) = run_reference(model, [OUTLIERS]), run_reference(result, [OUTLIERS])
    return float(np.abs(found - expected).mean())


def test_errors() -> None:
    with pytest.raises(InputError, match="smooth-quant needs calibration data"):
        SmoothQuant()(graph(PLAIN))
    with pytest.raises(PipelineError, match=r"alpha} must be from 0 to 1, not 1\.5"):
        SmoothQuant(1.5)
    assert parse_pipeline("smooth-quant{alpha=0.75}", PASSES) == [SmoothQuant(0.75)]
    model = graph("g (float[N,16] x) => (float[N,12] y) { l = Log(x) y = MatMul(l, w) }")
    with pytest.raises(InputError, match="calibration set 0: the model's 'l' holds NaN or infinity"):
        smooth(model, X)(model)
    assert error(graph(PLAIN), graph(PLAIN), X) == 0
