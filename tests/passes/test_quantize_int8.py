"""quantize-int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from optimizer.calibration import Samples
from optimizer.errors import InputError, PipelineError, UnsupportedError
from optimizer.ir.near_miss import RewriteResult
from optimizer.ir.walk import all_nodes
from optimizer.ort_session import OrtSession
from optimizer.pass_manager import PassManager, parse_pipeline
from optimizer.reference import Oracle, run_reference
from optimizer.testing import check_pass, difference, models
from passes.quantization import layers
from passes.quantization.grids import Kind, channel_scales, quantize_channels
from passes.quantize_int8 import QuantizeInt8
from passes.registry import PASSES
from tests.passes.transform import assert_stays, read

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 16)).astype(np.float32)
IMAGE = RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)
WEIGHTS = {
    "w": RNG.standard_normal((16, 12)).astype(np.float32),
    "t": RNG.standard_normal((12, 16)).astype(np.float32),
    "v": RNG.standard_normal((12, 8)).astype(np.float32),
    "b": RNG.standard_normal(12).astype(np.float32),
    "k": RNG.standard_normal((16, 3, 3, 3)).astype(np.float32),
    "c": RNG.standard_normal(16).astype(np.float32),
}


def graph(text: str, opset: int = 23, **weights: np.ndarray) -> ir.Model:
    """A model from text, with those of `WEIGHTS` and `weights` that it names."""
    model = read(text, opset)
    used = {value.name for node in all_nodes(model) for value in node.inputs if value is not None}
    for name, array in {**WEIGHTS, **weights}.items():
        if name in used:
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
            for node in all_nodes(model):
                for index, given_value in enumerate(node.inputs):
                    if given_value is not None and given_value.name == name:
                        node.replace_input_with(index, value)
            model.graph.register_initializer(value)
    return model


def static(model: ir.Model, *sets: Any, **options: Any) -> QuantizeInt8:
    return QuantizeInt8(samples=Samples.of(model.graph, [*sets] or [X]), **options)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def error(model: ir.Model, result: ir.Model, *inputs: Any) -> float:
    (expected,), (found,) = run_reference(model, list(inputs)), run_reference(result, list(inputs))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


BOUND = float(2 * 4 * 2 / 255 / np.sqrt(12))
"""What one layer may lose: two operands, each in 255 steps over numbers whose largest is four times their mean."""


def arrays(model: ir.Model, dtype: ir.DataType) -> list[np.ndarray]:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return [tensor.numpy() for tensor in tensors if tensor is not None and tensor.dtype == dtype]


def weight_of(model: ir.Model, name: str) -> str | None:
    weight = model.graph.node(name).inputs[1]
    return None if weight is None else weight.name


MATMUL = "g (float[N,16] x) => (float[N,12] y) { y = MatMul(x, w) }"
GEMM = "g (float[N,16] x) => (float[N,12] y) { y = Gemm(x, w, b) }"
TURNED = "g (float[N,16] x) => (float[N,12] y) { y = Gemm<transB = 1>(x, t, b) }"
CONV = "g (float[N,3,9,9] x) => (float[N,16,5,5] y) { h = Conv<pads = [1,1,1,1], strides = [2,2]>(x, k, c) y = Neg(h) }"
LAYERS = [(MATMUL, X), (GEMM, X), (TURNED, X), (CONV, IMAGE)]


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


def optimized_operators(model: ir.Model) -> list[str]:
    """What ONNX Runtime makes of the model."""
    import tempfile
    from pathlib import Path

    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_a_bias_that_int32_cannot_hold_widens_the_scales_of_its_channels() -> None:
    kernel, bias = WEIGHTS["k"].copy(), WEIGHTS["c"].copy()
    kernel[3], bias[3] = 1e-9, 50.0
    kernel[5] = 0
    model = graph(CONV, k=kernel, c=bias)
    result = check_pass(static(model, IMAGE, kernels="onnxruntime"), model)
    (codes,) = arrays(result, ir.DataType.INT32)
    assert np.abs(codes.astype(np.int64)).max() <= 2**30 + 1
    assert error(model, result, IMAGE) < BOUND


# --- What is left alone ---


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[N,16] x, float[16,12] w1) => (float[N,12] y) { y = MatMul(x, w1) }", "operand 'w1' is not constant"),
        ("g (float[N,16] x) => (float[N,12] y) <float[16,12] w1 = {0}> { y = MatMul(x, w1) }", ""),
        ("g (double[N,2] x) => (double[N,2] y) <double[2,2] d = {1,2,3,4}> { y = MatMul(x, d) }", "'d' is double"),
        ("g (float16[N,2] x) => (float16[N,2] y) <float16[2,2] d = {1,2,3,4}> { y = MatMul(x, d) }", "is float16"),
        ("g (float[N,2] x) => (float[N,2] y) <float[2,2] d = {1,2,3,4}> { y = MatMul(x, d) }", "2 times only"),
        ("g (float[2] x) => (float[8] y) <float[2,8] d = {1}> { y = MatMul(x, d) }", "a vector"),
        ("g (float[N,2] x) => (float[1,N,8] y) <float[1,2,8] d = {1}> { y = MatMul(x, d) }", "rank 3"),
        ("g (float[2,N] x) => (float[N,8] y) <float[2,8] d = {1}> { y = Gemm<transA = 1>(x, d) }", "is transposed"),
        ("g (float[N,2] x) => (float[N,8] y) <float[2,8] d = {1}> { y = Gemm<alpha = 2.0>(x, d) }", "alpha and beta"),
        (
            "g (float[N,2] x) => (float[N,8] y) <float[2,8] d = {1}, float[8] e = {1}> {"
            " y = Gemm<beta = 2.0>(x, d, e) }",
            "alpha and beta",
        ),
    ],
)
def test_layers_that_are_left_alone(text: str, reason: str) -> None:
    import re

    text = re.sub(r"float\[(\d+(?:,\d+)*)\] (\w+) = \{[01]\}", _filled, text)
    model = read(text)
    pass_ = QuantizeInt8(dynamic=True)
    result = pass_(model)
    assert isinstance(result, RewriteResult)
    if reason:
        assert not result.modified
        assert reason in result.near_misses[0].reason
    else:
        assert result.modified


def _filled(match: Any) -> str:
    count = int(np.prod([int(size) for size in match[1].split(",")]))
    return f"float[{match[1]}] {match[2]} = {{{','.join(['1'] * count)}}}"


def test_a_vector_weight_and_an_empty_one() -> None:
    text = "g (float[N,16] x) => (float[N] y) { y = MatMul(x, w1) }"
    result = QuantizeInt8(dynamic=True)(graph(text, w1=np.ones(16, np.float32)))
    assert isinstance(result, RewriteResult) and "rank 1" in result.near_misses[0].reason
    text = "g (float[N,0] x) => (float[N,8] y) { y = MatMul(x, w1) }"
    result = QuantizeInt8(dynamic=True)(graph(text, w1=np.ones((0, 8), np.float32)))
    assert isinstance(result, RewriteResult) and "no elements" in result.near_misses[0].reason


def test_an_activation_of_unknown_rank() -> None:
    text = "g (float[N,16] x, int64[R] s) => (float[N,12] y) { r = Reshape(x, s) y = MatMul(r, w) }"
    model, shape = graph(text), np.array([5, 16])
    result = QuantizeInt8(dynamic=True)(model.clone())
    assert isinstance(result, RewriteResult) and "rank of 'r' is not known" in result.near_misses[0].reason
    quantized = static(model, (X, shape))(model.clone())
    assert quantized.modified and error(model, quantized.model, X, shape) < BOUND


def test_old_opsets() -> None:
    for opset, dynamic, reason in ((12, False, "13 is needed"), (20, True, "21 is needed")):
        model = graph(MATMUL, opset)
        result = static(graph(MATMUL), dynamic=dynamic)(model)
        assert isinstance(result, RewriteResult) and not result.modified
        assert reason in result.near_misses[0].reason
    model = graph(MATMUL, 13)
    assert static(graph(MATMUL))(model).modified


def test_operators_and_nodes_that_nobody_wants() -> None:
    model = graph("g (float[N,16] x) => (float[N,8] y) { h = Gemm(x, w, b) y = MatMul(h, v) }")
    for node, name in zip(model.graph, ("first", "second"), strict=True):
        node.name = name
    kept = check_pass(static(model, nodes_to_exclude="other+first"), model)
    assert [node.name for node in kept.graph if node.op_type == "DequantizeLinear"] != []
    assert weight_of(kept, "first") == "w"
    assert weight_of(kept, "second") != "v"
    kept = check_pass(static(model, op_types_to_quantize="Gemm"), model)
    assert weight_of(kept, "second") == "v"
    result = static(model, op_types_to_quantize="Conv")(model)
    assert isinstance(result, RewriteResult) and not result.modified
    assert [miss.reason for miss in result.near_misses] == [
        "Gemm is not among the operators to quantize",
        "MatMul is not among the operators to quantize",
    ]


def test_excluded_by_the_name_in_the_original_model() -> None:
    model = graph(MATMUL)
    model.graph[0].name = "original"
    PassManager([]).run(model)
    model.graph[0].name = "renamed"
    result = QuantizeInt8(dynamic=True, nodes_to_exclude="original")(model)
    assert isinstance(result, RewriteResult) and result.near_misses[0].reason == "it is excluded by name"


def test_a_weight_that_others_need_stays() -> None:
    model = graph("g (float[N,16] x) => (float[N,12] y, float[16,12] z) { y = MatMul(x, w) z = Neg(w) }")
    result = check_pass(static(model), model)
    assert "w" in result.graph.initializers and error_of_first(model, result) < BOUND
    tied = graph("g (float[N,16] x) => (float[N,16] y) { h = MatMul(x, w) y = Gemm<transB = 1>(h, w) }")
    result = check_pass(static(tied), tied)
    assert "w" not in result.graph.initializers
    assert sum(value.dtype == ir.DataType.INT8 for value in result.graph.initializers.values()) == 2


def error_of_first(model: ir.Model, result: ir.Model) -> float:
    expected, found = run_reference(model, [X])[0], run_reference(result, [X])[0]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_layers_in_subgraphs_and_functions() -> None:
    text = """g (bool p, float[N,16] x) => (float[N,12] y) {
        y = If(p) <then_branch = a () => (float[N,12] m) { m = MatMul(x, w) }
                   , else_branch = c () => (float[N,12] n) { n = MatMul(x, w) }> }"""
    result = QuantizeInt8(dynamic=True)(graph(text))
    assert isinstance(result, RewriteResult) and not result.modified
    assert {miss.reason for miss in result.near_misses} == {
        "it is inside a subgraph or a function, of which nothing is observed"
    }


def test_what_is_quantized_already_is_no_near_miss() -> None:
    model = graph(MATMUL)
    result = static(model)(model.clone()).model
    again = static(model)(result)
    assert isinstance(again, RewriteResult) and not again.modified and not again.near_misses


# --- Errors ---


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_no_number(bad: float) -> None:
    weight = WEIGHTS["w"].copy()
    weight[3, 4] = bad
    with pytest.raises(UnsupportedError, match="its weight 'w' holds NaN or infinity"):
        QuantizeInt8(dynamic=True)(graph(MATMUL, w=weight))


def test_an_activation_that_is_no_number() -> None:
    model = graph("g (float[N,16] x) => (float[N,12] y) { l = Log(x) y = MatMul(l, w) }")
    good = np.abs(X) + 1
    with pytest.raises(InputError, match="calibration set 1: the model's 'l' holds NaN or infinity"):
        static(model, good, X)(model)


def test_no_calibration_data() -> None:
    with pytest.raises(InputError, match=r"needs calibration data.*calibration=.*dynamic=true"):
        QuantizeInt8()(graph(MATMUL))
    assert_stays(QuantizeInt8(), "g (float[N] x) => (float[N] y) { y = Relu(x) }")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_type": "int4"}, "weight_type} must be one of 'int8', 'uint8', not 'int4'"),
        ({"activation_type": "float"}, "activation_type}"),
        ({"calibrate_method": "max"}, "calibrate_method} must be one of 'minmax', 'percentile', 'entropy', 'mse'"),
        ({"kernels": "cuda"}, "kernels}"),
        ({"percentile": 0.0}, "percentile} must be over 0 and at most 100, not 0.0"),
        ({"op_types_to_quantize": "Conv+Relu"}, "can hold Conv, Gemm, MatMul, not 'Relu'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        QuantizeInt8(**options)


def test_the_data_is_no_option() -> None:
    model = graph(MATMUL)
    pass_ = static(model, dynamic=True, percentile=99.0)
    assert str(pass_) == "quantize-int8{dynamic=true,percentile=99.0}"
    assert parse_pipeline(str(pass_), PASSES) == [QuantizeInt8(dynamic=True, percentile=99.0)]
    with pytest.raises(PipelineError, match="has no option 'samples'"):
        parse_pipeline("quantize-int8{samples=x}", PASSES)


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
