"""quantize-int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from optimizer.calibration import Samples
from optimizer.ir.near_miss import RewriteResult
from optimizer.ort_session import OrtSession
from optimizer.reference import Oracle, run_reference
from optimizer.testing import check_pass, difference, models
from passes.quantization import layers
from passes.quantization.grids import Kind, channel_scales, quantize_channels
from passes.quantize_int8 import QuantizeInt8
from tests.passes.int8_graphs import (
    BOUND,
    CONV,
    GEMM,
    IMAGE,
    LAYERS,
    MATMUL,
    RNG,
    TURNED,
    WEIGHTS,
    X,
    arrays,
    error,
    graph,
    operators,
    optimized_operators,
    static,
)

# --- 1. Static ---


@pytest.mark.parametrize(("text", "x"), LAYERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_channel": False},
        {"weight_type": "uint8"},
        {"activation_type": "int8"},
        {"activation_type": "int8", "activation_symmetric": True},
        {"calibrate_method": "percentile"},
        {"calibrate_method": "entropy"},
        {"calibrate_method": "mse"},
        {"kernels": "onnxruntime"},
        {"kernels": "onnxruntime", "per_channel": False, "weight_type": "uint8"},
    ],
    ids=str,
)
def test_a_layer_loses_what_rounding_costs(text: str, x: np.ndarray, options: dict[str, Any]) -> None:
    model = graph(text)
    pass_ = static(model, x, **options)
    result = check_pass(pass_, model)
    assert operators(result).count("QuantizeLinear") == (2 if "kernels" in options and text == CONV else 1)
    # Entropy cuts off what is rare, and with so few numbers all are.
    wide = 8 if options.get("calibrate_method") == "entropy" else 1
    assert 1e-4 < error(model, result, x) < wide * BOUND
    fast = OrtSession.from_model(result).run([x])[0]
    np.testing.assert_allclose(fast, run_reference(result, [x])[0], rtol=0, atol=0.05)


def test_the_graph_has_the_form_of_onnx() -> None:
    model = graph(GEMM)
    result = check_pass(static(model, bias_correction=False), model)
    scales = channel_scales(WEIGHTS["w"], 1, Kind(True, True))
    grid = Kind(False, False).over(float(X.min()), float(X.max()))
    expected = graph(
        """g (float[N,16] x) => (float[N,12] y) {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear<axis = 1>(u, f)
            y = Gemm(d, e, b) }""",
        u=quantize_channels(WEIGHTS["w"], scales, 1, Kind(True, True)),
        f=scales,
        s=np.array(grid.scale, np.float32),
        z=np.array(grid.zero_point, np.uint8),
    )
    assert not difference(expected, result, types=False)
    assert "w" not in result.graph.initializers


def test_the_result_is_what_numpy_expects() -> None:
    """The oracle: the quantized product, computed in integers."""
    model = graph(GEMM)
    result = static(model, bias_correction=False)(model.clone()).model
    scales = channel_scales(WEIGHTS["w"], 1, Kind(True, True))
    codes = quantize_channels(WEIGHTS["w"], scales, 1, Kind(True, True)).astype(np.int64)
    grid = Kind(False, False).over(float(X.min()), float(X.max()))
    total = (grid.quantize(X).astype(np.int64) - grid.zero_point) @ codes
    expected = total * (grid.scale * scales.astype(np.float64)) + WEIGHTS["b"]
    np.testing.assert_allclose(run_reference(result, [X])[0], expected, rtol=1e-5, atol=1e-5)


def test_what_two_layers_read_is_rounded_once() -> None:
    text = "g (float[N,16] x) => (float[N,12] y, float[N,12] z) { y = MatMul(x, w) z = Gemm<transB = 1>(x, t, b) }"
    model = graph(text)
    assert operators(check_pass(static(model), model)).count("QuantizeLinear") == 1


def test_a_layer_behind_another() -> None:
    model = graph("g (float[N,16] x) => (float[N,8] y) { h = Gemm(x, w, b) r = Relu(h) y = MatMul(r, v) }")
    for kernels in ("tersor", "onnxruntime"):
        for dynamic in (False, True):
            result = check_pass(static(model, dynamic=dynamic, kernels=kernels), model)
            assert error(model, result, X) < 2 * BOUND


def test_reduce_range_takes_seven_bits_of_the_weight() -> None:
    model = graph(MATMUL)
    result = check_pass(static(model, reduce_range=True), model)
    (codes,) = arrays(result, ir.DataType.INT8)
    assert np.abs(codes).max() == 63


def test_percentile_is_taken_from_the_option() -> None:
    model = graph(MATMUL)
    wide, narrow = (
        static(model, calibrate_method="percentile", percentile=share)(model.clone()).model for share in (100.0, 60.0)
    )
    assert error(model, narrow, X) > 4 * error(model, wide, X)


# --- 2. Dynamic ---


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (2, 3, 2, 16)])
@pytest.mark.parametrize("symbols", [False, True])
@pytest.mark.parametrize("kernels", ["tersor", "onnxruntime"])
def test_rows_have_scales_of_their_own(shape: tuple[int, ...], symbols: bool, kernels: str) -> None:
    letters = [*"BCD"[: len(shape) - 1]] if symbols else [str(size) for size in shape[:-1]]
    front = ",".join(letters)
    model = graph(f"g (float[{front},16] x) => (float[{front},12] y) {{ h = MatMul(x, w) y = Add(h, b) }}")
    result = check_pass(QuantizeInt8(dynamic=True, kernels=kernels), model)
    x = RNG.standard_normal(shape).astype(np.float32)
    x[..., 0, :] *= 1000
    if kernels == "tersor":
        assert "MatMul" in operators(result) and "DynamicQuantizeLinear" not in operators(result)
        rows = result.clone()
        (expected,), (found,) = run_reference(model, [x]), run_reference(rows, [x])
        off = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert off.max() < 2 * BOUND
    else:
        assert operators(result).count("MatMulInteger") == 1
        assert error(model, result, x) < BOUND


def test_rows_whose_length_the_weight_alone_knows() -> None:
    model = graph("g (float[B,N,K] x) => (float[B,N,12] y) { y = MatMul(x, w) }")
    result = QuantizeInt8(dynamic=True)(model.clone()).model
    assert "QuantizeLinear" in operators(result)
    assert error(model, result, RNG.standard_normal((2, 3, 16)).astype(np.float32)) < BOUND


def test_a_row_of_zeros_stays_zero() -> None:
    model = graph(MATMUL)
    result = QuantizeInt8(dynamic=True)(model.clone()).model
    np.testing.assert_array_equal(run_reference(result, [np.zeros((2, 16), np.float32)])[0], 0)


def test_rows_that_layers_share_are_rounded_once() -> None:
    text = "g (float[M,N,16] x) => (float[M,N,12] y, float[M,N,12] z) { y = MatMul(x, w) z = MatMul(x, u) }"
    model = graph(text, u=WEIGHTS["w"] + 1)
    for kernels, op_type in (("tersor", "QuantizeLinear"), ("onnxruntime", "DynamicQuantizeLinear")):
        result = check_pass(QuantizeInt8(dynamic=True, kernels=kernels), model)
        assert operators(result).count(op_type) == 1


def test_a_convolution_stays_without_calibration() -> None:
    model = graph(CONV)
    result = QuantizeInt8(dynamic=True)(model)
    assert isinstance(result, RewriteResult) and not result.modified
    assert "give calibration data" in result.near_misses[0].reason


# --- 3. Forms for ONNX Runtime ---


def test_onnx_runtime_multiplies_integers() -> None:
    for text, x, op_type in ((GEMM, X, "MatMulIntegerToFloat"), (TURNED, X, "MatMulIntegerToFloat")):
        model = graph(text)
        result = check_pass(static(model, x, kernels="onnxruntime"), model)
        assert "Gemm" not in operators(result)
        assert op_type in optimized_operators(result)
    model = graph(GEMM)
    assert "DynamicQuantizeMatMul" in optimized_operators(
        check_pass(QuantizeInt8(dynamic=True, kernels="onnxruntime"), model)
    )


def test_a_bias_that_int32_cannot_hold_widens_the_scales_of_its_channels() -> None:
    kernel, bias = WEIGHTS["k"].copy(), WEIGHTS["c"].copy()
    kernel[3], bias[3] = 1e-9, 50.0
    kernel[5] = 0
    model = graph(CONV, k=kernel, c=bias)
    result = check_pass(static(model, IMAGE, kernels="onnxruntime"), model)
    (codes,) = arrays(result, ir.DataType.INT32)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30 + 1
    assert error(model, result, IMAGE) < BOUND


# --- All graphs ---


SOUND = ("conv", "gemm", "layer", "matmul", "identity", "if", "function", "repeat", "reshape", "transpose", "unary")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=models(families=SOUND, static=True))
def test_property(model: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MIN_REUSE", 0)
    oracle = Oracle(model, seed=0)
    for kernels in ("tersor", "onnxruntime"):
        check_pass(QuantizeInt8(dynamic=True, kernels=kernels), model)
        check_pass(QuantizeInt8(samples=Samples([oracle.inputs]), kernels=kernels), model)
