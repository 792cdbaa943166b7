"""What is rounded between the layers, and biases that take a layer's mean error out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.ir.near_miss import RewriteResult
from optimizer.ort_session import OrtSession
from optimizer.reference import run_reference
from optimizer.testing import check_pass
from tests.passes.int8_graphs import IMAGE, RNG, X, arrays, error, graph, operators, optimized_operators, static

K = (RNG.standard_normal((16, 16, 3, 3)) / 12).astype(np.float32)
D = RNG.standard_normal((16, 1, 3, 3)).astype(np.float32)
HEAD = "g (float[N,3,9,9] x) => (float[N,16,M,M] y) { h = Conv<pads = [1,1,1,1]>(x, k, c) r = Relu(h)"
SAME = "<pads = [1,1,1,1]>"


def chain(middle: str, end: str = "z = Conv<pads = [1,1,1,1]>(a, q) y = Neg(z)") -> ir.Model:
    """Two convolutions, from `r` to `a`."""
    return graph(f"{HEAD} {middle} {end} }}", q=K, d=D)


def reads(model: ir.Model, op_type: str) -> list[str]:
    """What gives the inputs of the first node of an operator."""
    node = next(node for node in model.graph if node.op_type == op_type)
    makers = [value.producer() for value in node.inputs if value is not None]
    return ["" if maker is None else maker.op_type for maker in makers]


def grids(model: ir.Model) -> set[bytes]:
    """The scales of all that is rounded."""
    found = [node.inputs[1] for node in model.graph if node.op_type == "QuantizeLinear"]
    return {value.const_value.tobytes() for value in found if value is not None and value.const_value is not None}


CARRIERS = {
    "MaxPool": "a = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r)",
    "Transpose": "a = Transpose<perm = [0,1,3,2]>(r)",
    "Pad": "a = Pad(r, pads)",
    "Slice": "s = Transpose<perm = [0,1,3,2]>(r) a = Slice(s, first, last, axes)",
}


@pytest.mark.parametrize("op_type", CARRIERS)
@pytest.mark.parametrize("kernels", ["tersor", "onnxruntime"])
def test_what_moves_elements_moves_codes(op_type: str, kernels: str) -> None:
    constants: dict[str, Any] = {
        "pads": np.array([0, 0, 1, 1] * 2),
        "first": np.array([1]),
        "last": np.array([7]),
        "axes": np.array([2]),
    }
    model = graph(f"{HEAD} {CARRIERS[op_type]} z = Conv(a, q) y = Neg(z) }}", q=K, **constants)
    result = check_pass(static(model, IMAGE, kernels=kernels), model)
    assert reads(result, op_type)[0] == "DequantizeLinear"
    # The image, what lies between the convolutions, and for ONNX Runtime what the last one gives.
    assert len(grids(result)) == (2 if kernels == "tersor" else 3)
    assert error(model, result, IMAGE) < 0.03


def test_nothing_is_lost_by_it() -> None:
    """A MaxPool of codes gives the codes of the MaxPool, on the grid of what it gives."""
    model = chain(CARRIERS["MaxPool"])
    result = static(model, IMAGE)(model.clone()).model
    rounded = [node for node in result.graph if node.op_type == "QuantizeLinear"]
    assert len(rounded) == 3
    (y,) = run_reference(result, [IMAGE])
    around = result.clone()
    pool = next(node for node in around.graph if node.op_type == "MaxPool")
    pool.replace_input_with(0, next(v for node in around.graph for v in node.outputs if v.name == "r"))
    np.testing.assert_allclose(run_reference(around, [IMAGE])[0], y, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("middle", "why"),
    [
        ("a = AveragePool<kernel_shape = [2,2]>(r)", "it computes"),
        ("a = MaxPool<kernel_shape = [2,2]>(r) n = Neg(a)", "what it gives is needed as float32"),
        ("a = Pad(r, pads, one)", "it brings in something else than zero"),
        ('a = Pad<mode = "reflect">(r, pads)', "it brings in other elements"),
        ("a, i = MaxPool<kernel_shape = [2,2]>(r) j = Neg(i)", "it gives positions, too"),
    ],
)
def test_operators_that_keep_float32(middle: str, why: str) -> None:
    del why
    model = graph(
        f"{HEAD} {middle} z = Conv(a, q) y = Neg(z) }}",
        q=K,
        pads=np.array([0, 0, 1, 1] * 2),
        one=np.array(1, np.float32),
    )
    result = check_pass(static(model, IMAGE), model)
    assert reads(result, middle.split(" = ")[1].split("(")[0].split("<")[0])[0] == "Relu"


SKIP = f"z = Conv{SAME}(r, q) a = Add(z, r)"


def test_a_skip_connection_is_stored_as_codes() -> None:
    model = chain(SKIP, f"w1 = Conv{SAME}(a, q) y = Neg(w1)")
    result = check_pass(static(model, IMAGE), model)
    assert reads(result, "Add") == ["Conv", "DequantizeLinear"]
    assert operators(result).count("QuantizeLinear") == 3


def test_a_skip_connection_that_others_need_stays() -> None:
    model = chain(SKIP, f"m = Exp(r) w1 = Conv{SAME}(a, q) y = Add(w1, m)")
    result = check_pass(static(model, IMAGE), model)
    assert reads(result, "Add") == ["Conv", "Relu"]


def test_the_skip_connection_of_products_stays() -> None:
    text = "g (float[N,16] x) => (float[N,16] y) { r = Relu(x) h = Gemm<transB = 1>(r, q) y = Add(h, r) }"
    model = graph(text, q=K[:, :, 0, 0])
    result = check_pass(static(model), model)
    assert reads(result, "Add") == ["Gemm", "Relu"]


def test_onnx_runtime_computes_all_of_a_block_in_integers() -> None:
    text = f"{HEAD} {SKIP} e = Relu(a) p = GlobalAveragePool(e) f = Flatten(p) y = MatMul(f, m) }}"
    model = graph(text.replace("N,16,M,M", "N,10"), q=K, m=RNG.standard_normal((16, 10)).astype(np.float32))
    result = check_pass(static(model, IMAGE, kernels="onnxruntime"), model)
    found = optimized_operators(result)
    assert {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "MatMulIntegerToFloat"} <= set(found)
    assert not {"Conv", "Add", "Relu", "GlobalAveragePool", "MatMul"} & set(found)
    (fast,), (slow,) = OrtSession.from_model(result).run([IMAGE]), run_reference(result, [IMAGE])
    np.testing.assert_allclose(fast, slow, rtol=0, atol=0.05 * float(np.abs(slow).max()))


def test_a_convolution_whose_result_is_an_output_stays_for_onnx_runtime() -> None:
    model = graph(f"{HEAD} y = Conv{SAME}(r, q) }}", q=K)
    pass_ = static(model, IMAGE, kernels="onnxruntime")
    result = pass_(model.clone())
    assert isinstance(result, RewriteResult)
    assert [miss.reason for miss in result.near_misses] == [
        "its result leaves the graph as float32: ONNX Runtime would compute it in float32"
    ]
    assert len(arrays(check_pass(pass_, model), ir.DataType.INT8)) == 1
    assert not static(model, IMAGE)(model.clone()).near_misses  # type: ignore[attr-defined]


def test_a_layer_that_nobody_wants_quantized_reads_float32_in_onnx_runtime() -> None:
    """Which rounds the weight of a layer between roundings by itself."""
    model = chain("a = Conv<pads = [1,1,1,1], group = 16>(r, d)")
    for node in model.graph:
        node.name = node.outputs[0].name
    result = check_pass(static(model, IMAGE, kernels="onnxruntime", nodes_to_exclude="a"), model)
    kept = result.graph.node("a").inputs[0]
    assert kept is not None and kept.name == "r"
    (fast,), (slow,) = OrtSession.from_model(result).run([IMAGE]), run_reference(result, [IMAGE])
    np.testing.assert_allclose(fast, slow, rtol=0, atol=0.03 * float(np.abs(slow).max()))


# --- Biases ---


def mean_error(model: ir.Model, result: ir.Model, x: Any, axes: Any) -> float:
    (expected,), (found,) = run_reference(model, [x]), run_reference(result, [x])
    return float(np.abs((found - expected).mean(axis=axes)).mean())


@pytest.mark.parametrize("kernels", ["tersor", "onnxruntime"])
@pytest.mark.parametrize("bias", ["", ", b"])
@pytest.mark.parametrize("layer", ["Gemm(x, w{})", "Gemm<transB = 1>(x, t{})"])
def test_the_mean_error_of_a_product_is_taken_out(layer: str, bias: str, kernels: str) -> None:
    x = X + 5
    model = graph(f"g (float[N,16] x) => (float[N,12] y) {{ y = {layer.format(bias)} }}")
    options: dict[str, Any] = {"kernels": kernels, "per_channel": False}
    plain = static(model, x, bias_correction=False, **options)(model.clone()).model
    corrected = static(model, x, bias_correction=True, **options)(model.clone()).model
    assert mean_error(model, corrected, x, 0) < 0.5 * mean_error(model, plain, x, 0)


@pytest.mark.parametrize("bias", ["", ", c"])
@pytest.mark.parametrize(("weight", "group"), [("q", 1), ("d", 16), ("o", 4)])
def test_the_mean_error_of_a_convolution_is_taken_out(weight: str, group: int, bias: str) -> None:
    x = np.abs(RNG.standard_normal((4, 16, 20, 20))).astype(np.float32) + 2
    text = f"g (float[N,16,S,S] x) => (float[N,O,P,P] y) {{ y = Conv<group = {group}>(x, {weight}{bias}) }}"
    model = graph(text, q=K, d=D, o=RNG.standard_normal((16, 4, 3, 3)).astype(np.float32))
    plain = static(model, x, bias_correction=False, per_channel=False)(model.clone()).model
    corrected = static(model, x, per_channel=False)(model.clone()).model
    assert mean_error(model, corrected, x, (0, 2, 3)) < 0.3 * mean_error(model, plain, x, (0, 2, 3))


def test_a_bias_that_is_computed_stays() -> None:
    model = graph("g (float[N,16] x, float[N,12] e) => (float[N,12] y) { y = Gemm(x, w, e) }")
    e = np.zeros((5, 12), np.float32)
    result = check_pass(static(model, (X, e)), model)
    (product,) = [node for node in result.graph if node.op_type == "Gemm"]
    assert product.inputs[2] is result.graph.inputs[1]
