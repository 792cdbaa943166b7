"""What quantize-int8 leaves alone, and refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.errors import InputError, PipelineError, UnsupportedError
from optimizer.ir.near_miss import RewriteResult
from optimizer.pass_manager import PassManager, parse_pipeline
from optimizer.reference import run_reference
from optimizer.testing import check_pass
from passes.quantize_int8 import QuantizeInt8
from passes.registry import PASSES
from tests.passes.int8_graphs import BOUND, MATMUL, WEIGHTS, X, error, graph, static, weight_of
from tests.passes.transform import assert_stays, read

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
        ({"op_types_to_quantize": "Conv+Relu"}, "can hold Conv, Gemm, MatMul, Attention, Gather, not 'Relu'"),
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
