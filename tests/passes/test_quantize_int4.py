"""quantize-int4: the graph that it leaves."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.calibration import Samples
from optimizer.errors import InputError, ModelError, PipelineError
from optimizer.pass_manager import Pass, PassManager, parse_pipeline
from optimizer.testing import check_pass
from passes.quantization.blocks import Floats
from passes.quantization.emit import NOTE
from passes.quantize_int4 import QuantizeInt4
from passes.registry import PASSES
from tests.passes.int4_graphs import answers, correlated, model_of, quantized, reference_answers

RNG = np.random.default_rng(7)
MATMUL = "g (float[M,96] x) => (float[M,40] y) { y = MatMul(x, w) }"
GRAPHS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "MatMul": (MATMUL, {"w": (96, 40)}),
    "Gemm": ("g (float[M,96] x) => (float[M,40] y) { y = Gemm(x, w, b) }", {"w": (96, 40), "b": (40,)}),
    "Gemm transA": ("g (float[96,M] x) => (float[M,40] y) { y = Gemm<transA = 1>(x, w) }", {"w": (96, 40)}),
    "Gemm transB": ("g (float[M,96] x) => (float[M,40] y) { y = Gemm<transB = 1>(x, w) }", {"w": (40, 96)}),
    "Conv": ("g (float[2,48,6,7] x) => (float[2,20,3,3] y) { y = Conv<strides=[2,2], pads=[1,0,0,1]>(x, w) }",
             {"w": (20, 48, 3, 3)}),
    "Conv of few channels": ("g (float[2,3,6,7] x) => (float[2,20,4,5] y) { y = Conv(x, w) }", {"w": (20, 3, 3, 3)}),
    "Conv in groups": ("g (float[2,8,6,7] x) => (float[2,8,4,5] y) { y = Conv<group = 8>(x, w) }", {"w": (8, 1, 3, 3)}),
    "Conv of signals": ("g (float[2,40,9] x) => (float[2,6,7] y) { y = Conv(x, w) }", {"w": (6, 40, 3)}),
}  # fmt: skip


def weights_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def input_of(model: ir.Model) -> np.ndarray:
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return RNG.normal(size=[size if isinstance(size, int) else 5 for size in shape]).astype(np.float32)


def reasons(model: ir.Model, pass_: Pass) -> list[str]:
    """Why a model stays as it is."""
    result = PassManager([pass_]).run(model)
    assert not result.modified
    return [miss.reason for miss in result.near_misses]


# --- 1. Codes, scales and zero points ---


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 32},
        {"block_size": 64, "symmetric": True},
        {"block_size": 0, "symmetric": True, "scale_type": "float16"},
        {"block_size": 16, "scale_type": "bfloat16"},
    ],
    ids=str,
)
def test_every_operator_runs_in_onnx_runtime_and_in_the_reference(graph: str, options: dict[str, object]) -> None:
    text, shapes = GRAPHS[graph]
    model = model_of(text, weights_of(shapes))
    result = quantized(model, QuantizeInt4(method="rtn", **options))  # type: ignore[arg-type]
    assert any(node.op_type == "DequantizeLinear" for node in result.graph)
    inputs = {"x": input_of(model)}
    (wanted,), (found,), (plain,) = answers(model, inputs), answers(result, inputs), reference_answers(result, inputs)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-4)
    # Half a step of 4 bits is at most 1/15 of the span; rounding errors are independent and mostly smaller.
    assert 0 < np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)
    (fast,) = answers(result, inputs, optimized=True)
    np.testing.assert_allclose(fast, found, rtol=1e-3, atol=1e-3)


def test_an_embedding_is_looked_up_in_codes() -> None:
    model = model_of(
        "g (int64[M] i) => (float[M,96] y) { y = Gather(w, i) }",
        {"w": RNG.normal(size=(50, 96)).astype(np.float32)},
    )
    result = quantized(model, QuantizeInt4(method="rtn"))
    inputs = {"i": np.array([3, 49, -1])}
    (wanted,), (found,) = answers(model, inputs), answers(result, inputs)
    assert np.abs(found - wanted).max() < 0.25
    np.testing.assert_allclose(found, reference_answers(result, inputs)[0], rtol=1e-6)
    assert shapes_of(result) == {"codes": (50, 96), "scales": (50, 2), "zeros": (50, 2)}


def shapes_of(model: ir.Model) -> dict[str, tuple[int, ...]]:
    """Of the inputs of `DequantizeLinear`."""
    (node,) = (node for node in model.graph if node.op_type == "DequantizeLinear")
    given = [value for value in node.inputs if value is not None]
    names = ("codes", "scales", "zeros")[: len(given)]
    return {name: tuple(value.shape.numpy()) for name, value in zip(names, given, strict=True) if value.shape}


@pytest.mark.parametrize(
    ("graph", "options", "shapes", "axis", "block"),
    [
        ("MatMul", {}, {"codes": (96, 40), "scales": (3, 40), "zeros": (3, 40)}, 0, 32),
        ("MatMul", {"block_size": 0}, {"codes": (96, 40), "scales": (40,), "zeros": (40,)}, 1, 0),
        ("MatMul", {"block_size": 128}, {"codes": (96, 40), "scales": (40,), "zeros": (40,)}, 1, 0),
        ("MatMul", {"block_size": 64, "symmetric": True}, {"codes": (96, 40), "scales": (2, 40)}, 0, 64),
        ("Gemm transB", {}, {"codes": (40, 96), "scales": (40, 3), "zeros": (40, 3)}, 1, 32),
        ("Conv", {"symmetric": True}, {"codes": (20, 48, 3, 3), "scales": (20, 2, 3, 3)}, 1, 32),
        ("Conv of few channels", {"symmetric": True}, {"codes": (20, 3, 3, 3), "scales": (20,)}, 0, 0),
    ],
)
def test_the_form(
    graph: str, options: dict[str, object], shapes: dict[str, tuple[int, ...]], axis: int, block: int
) -> None:
    text, weights = GRAPHS[graph]
    options = {"block_size": 32, "method": "rtn"} | options
    result = quantized(model_of(text, weights_of(weights)), QuantizeInt4(**options))  # type: ignore[arg-type]
    assert shapes_of(result) == shapes
    node = result.graph[0]
    assert node.op_type == "DequantizeLinear"
    assert node.attributes["axis"].as_int() == axis
    assert ("block_size" in node.attributes) == bool(block)
    assert not block or node.attributes["block_size"].as_int() == block
    codes = node.inputs[0]
    assert codes is not None
    assert codes.dtype == (ir.DataType.INT4 if options.get("symmetric") else ir.DataType.UINT4)
    assert "w" not in result.graph.initializers


@pytest.mark.parametrize("scale_type", ["float16", "bfloat16"])
def test_scales_of_16_bits_are_cast(scale_type: str) -> None:
    text, shapes = GRAPHS["MatMul"]
    result = quantized(model_of(text, weights_of(shapes)), QuantizeInt4(scale_type=scale_type))
    assert [node.op_type for node in result.graph] == ["Cast", "DequantizeLinear", "MatMul"]
    stored = result.graph[0].inputs[0]
    assert stored is not None and stored.dtype is not None
    assert stored.dtype.name.lower() == scale_type


def test_the_contract_of_a_pass_with_weights_that_fit_the_grid() -> None:
    weights = np.tile(np.arange(16, dtype=np.float32), (40, 6)).T
    weights[16:32] -= 15
    result = check_pass(QuantizeInt4(block_size=16), model_of(MATMUL, {"w": weights}))
    assert result.graph[0].op_type == "DequantizeLinear"
    note = json.loads(result.graph[0].metadata_props[NOTE])
    assert note == {"method": "rtn", "error": 0.0}


def test_layers_can_share_a_weight() -> None:
    model = model_of(
        """g (int64[M] i, float[M,96] x) => (float[M,96] y, float[M,50] z) {
            y = Gather(w, i) z = Gemm<transB = 1>(x, w) }""",
        {"w": RNG.normal(size=(50, 96)).astype(np.float32)},
    )
    result = quantized(model, QuantizeInt4())
    assert [node.op_type for node in result.graph] == ["DequantizeLinear", "Gather", "Gemm"]
    # With calibration data the product is what they are judged by.
    samples = Samples([[np.array([1]), correlated(200, 96)]])
    result = quantized(model, QuantizeInt4(samples=samples))
    assert json.loads(result.graph[0].metadata_props[NOTE])["method"] == "gptq"


def test_weights_inside_a_branch_and_in_a_constant_node() -> None:
    model = model_of(
        """g (bool c, float[4,32] x) => (float[4,32] y) {
            v = Constant<value_floats = [1.0]>() y = If(c) <
                then_branch = a () => (float[4,32] p) { p = MatMul(x, w) },
                else_branch = b () => (float[4,32] q) { q = Identity(x) }> }""",
        {"w": RNG.normal(size=(32, 32)).astype(np.float32)},
    )
    result = quantized(model, QuantizeInt4(block_size=16))
    inputs = {"c": np.array(True), "x": RNG.normal(size=(4, 32)).astype(np.float32)}
    (wanted,), (found,) = answers(model, inputs), answers(result, inputs)
    assert 0 < np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)
    assert "w" not in result.graph.initializers

    rows = ", ".join("1.0" if i % 5 else "-2.0" for i in range(64))
    text = f"g (float[4,32] x) => (float[4,2] y) {{ w = Constant<value = float[32,2] {{{rows}}}>() y = MatMul(x, w) }}"
    result = quantized(model_of(text, {}), QuantizeInt4(block_size=16))
    assert [node.op_type for node in result.graph] == ["DequantizeLinear", "MatMul"]


# --- What stays as it is, and why ---


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        ("g (float[M,96] x) => (float[M,40] y, float[96,40] z) { y = MatMul(x, w) z = Neg(w) }", (96, 40),
         "its weight 'w' is also read by Neg 'z'"),
        ("g (float[40,M] x) => (float[96,M] y) { y = MatMul(w, x) }", (96, 40),
         "the constant 'w' is its input 0; weights of MatMul are input 1"),
        ("g (float[2,3,96] x) => (float[2,3,40] y) { y = MatMul(x, w) }", (2, 96, 40), "its weight 'w' has rank 3"),
        ("g (float[M,96] x) => (float[M] y) { y = MatMul(x, w) }", (96,), "its weight 'w' has rank 1"),
        ("g (float[M,0] x) => (float[M,3] y) { y = MatMul(x, w) }", (0, 3), "its weight 'w' has no elements"),
        ("g (float[M,1] x) => (float[M,40] y) { y = MatMul(x, w) }", (1, 40),
         "its weight 'w' would not become smaller"),
        ("g (int64[M] i) => (float[40,M] y) { y = Gather<axis = 1>(w, i) }", (40, 96),
         "it does not look up rows of its table 'w'"),
        ("g (float[M,64] x, float[N,64] z) => (float[M,64] y, float[N,64] v) "
         "{ y = MatMul(x, w) v = Gemm<transB = 1>(z, w) }", (64, 64),
         "its weight 'w' is read along the other axis by 'y'"),
    ],
)  # fmt: skip
def test_weights_that_are_left_alone(text: str, weight: tuple[int, ...], reason: str) -> None:
    model = model_of(text, {"w": np.ones(weight, np.float32)})
    assert reasons(model, QuantizeInt4()) == [reason]


def test_a_weight_that_is_an_output_stays() -> None:
    model = model_of("g (float[M,96] x) => (float[M,40] y) { y = MatMul(x, w) }", {"w": np.ones((96, 40), np.float32)})
    model.graph.outputs.append(model.graph.initializers["w"])
    assert reasons(model, QuantizeInt4()) == ["its weight 'w' is an output of the graph"]


def test_a_default_is_no_constant() -> None:
    model = model_of("g (float[M,96] x, float[96,40] w) => (float[M,40] y) { y = MatMul(x, w) }", {})
    default = model.graph.inputs[1]
    default.const_value = ir.tensor(np.ones((96, 40), np.float32), name="w")
    model.graph.register_initializer(default)
    assert reasons(model, QuantizeInt4()) == []


def test_float64_stays() -> None:
    text = MATMUL.replace("float[", "double[")
    assert reasons(model_of(text, {"w": np.ones((96, 40), np.float64)}), QuantizeInt4()) == [
        "its weight 'w' is double; only float32, float16 and bfloat16 are quantized"
    ]


def test_an_opset_without_4_bits() -> None:
    model = model_of(MATMUL, {"w": np.ones((96, 40), np.float32)}, opset=20)
    assert reasons(model, QuantizeInt4()) == ["opset 20 has no integers of 4 bits; opset 21 has"]


def test_operators_and_nodes_can_be_left_out() -> None:
    model = model_of(MATMUL, {"w": np.ones((96, 40), np.float32)})
    wanted = ["MatMul is not among the operators to quantize"]
    assert reasons(model, QuantizeInt4(op_types_to_quantize="Conv+Gather")) == wanted
    assert reasons(model, QuantizeInt4(nodes_to_exclude="other+y")) == ["it is excluded"]
    model.graph[0].name = "head"
    assert reasons(model, QuantizeInt4(nodes_to_exclude="head")) == ["it is excluded"]


@pytest.mark.parametrize("method", ["auto", "nf4"])
def test_a_layer_that_would_lose_too_much_stays(method: str) -> None:
    weights = weights_of({"w": (96, 40), "v": (40, 64)})
    weights["w"][:] = np.where(weights["w"] > 0, 1, -1)
    text = "g (float[M,96] x) => (float[M,64] y) { a = MatMul(x, w) y = MatMul(a, v) }"
    options = {"method": method, "block_size": 0}
    result = QuantizeInt4(max_error=0.05, **options)(model_of(text, weights))  # type: ignore[arg-type]
    assert [node.op_type for node in result.model.graph].count("MatMul") == 2
    assert next(iter(result.model.graph.initializers)) == "v"
    (miss,) = result.near_misses  # type: ignore[attr-defined]
    assert re.fullmatch(r"its error with 4 bits would be 0\.\d+, more than max_error=0\.05", miss.reason)
    assert "v" not in QuantizeInt4(**options)(model_of(text, weights)).model.graph.initializers  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["rtn", "nf4"])
def test_weights_that_are_not_finite(bad: float, method: str) -> None:
    weights = np.ones((64, 40), np.float32)
    weights[3, 4] = bad
    model = model_of(MATMUL.replace("96", "64"), {"w": weights})
    with pytest.raises(ModelError, match=r"weight 'w' of 'y' holds NaN or infinity: .* nodes_to_exclude=y"):
        QuantizeInt4(method=method)(model)


def test_scales_that_a_type_cannot_hold() -> None:
    model = model_of(MATMUL, {"w": np.full((96, 40), 1e6, np.float32)})
    (reason,) = reasons(model, QuantizeInt4(scale_type="float16"))
    assert reason == "weights up to 1e+06 in 'w' are too large for scales of float16"
    assert quantized(model, QuantizeInt4(scale_type="bfloat16")).graph[0].op_type == "Cast"


def test_a_block_of_zeros_and_one_of_tiny_weights() -> None:
    weights = np.zeros((96, 40), np.float32)
    weights[32:64] = 1e-44
    for options in ({}, {"symmetric": True}, {"scale_type": "float16"}):
        result = quantized(model_of(MATMUL, {"w": weights}), QuantizeInt4(block_size=32, **options))
        (found,) = answers(result, {"x": np.ones((1, 96), np.float32)})
        assert np.abs(found).max() < 1e-3


# --- Options ---


def test_options_print_back() -> None:
    pass_ = QuantizeInt4(method="hqq", block_size=0, symmetric=True, nodes_to_exclude="/model/head+y", resume="folder")
    text = "quantize-int4{method=hqq,block_size=0,symmetric=true,nodes_to_exclude=/model/head+y}"
    assert str(pass_) == text
    assert parse_pipeline(text, PASSES) == [pass_]
    with pytest.raises(PipelineError, match="has no option 'samples'"):
        parse_pipeline("quantize-int4{samples=1}", PASSES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method} must be one of auto, rtn, .* not 'best'"),
        ({"block_size": 48}, "block_size} must be one of 0, 16, 32, 64, 128, 256, not 48"),
        ({"scale_type": "double"}, "scale_type} must be one of float32, float16, bfloat16, not 'double'"),
        ({"activations": "int4"}, "activations} must be one of float32, int8, int8-rows, not 'int4'"),
        ({"max_error": -0.1}, "max_error} must not be negative, and is -0.1"),
        ({"max_error": 0.1, "method": "awq"}, "max_error} is not for method=awq, which scales all that read a value"),
        ({"max_error": float("nan")}, "max_error} must not be negative, and is nan"),
        ({"op_types_to_quantize": "MatMul+Add"}, "op_types_to_quantize} must be one of .* not 'Add'"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        QuantizeInt4(**options)  # type: ignore[arg-type]


def test_gptq_asks_for_data() -> None:
    with pytest.raises(InputError, match="method=gptq} needs calibration data: give calibration="):
        QuantizeInt4(method="gptq")(model_of(MATMUL, {"w": np.ones((96, 40), np.float32)}))


def test_progress_is_told() -> None:
    model = model_of(
        "g (float[M,96] x) => (float[M,96] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        weights_of({"w": (96, 40), "v": (40, 96)}),
    )
    told: list[tuple[int, int, str]] = []
    quantized(model, QuantizeInt4(method="rtn", progress=lambda *what: told.append(what)))
    assert told == [(1, 2, "a"), (2, 2, "y")]


# --- Weights of 16 bits ---


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
@pytest.mark.parametrize("options", [{"method": "rtn"}, {"method": "nf4", "block_size": 32}, {"scale_type": "float16"}])
def test_weights_that_are_cast_to_float32(stored: str, options: dict[str, object]) -> None:
    type_ = ir.DataType[stored.upper()]
    text = "g (float[M,96] x) => (float[M,40] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    weights = RNG.normal(size=(96, 40)).astype(type_.numpy())
    result = quantized(model_of(text, {"w": weights}), QuantizeInt4(**options))  # type: ignore[arg-type]
    plain = quantized(
        model_of(MATMUL, {"w": weights.astype(np.float32)}),
        QuantizeInt4(**options),  # type: ignore[arg-type]
    )
    assert [node.op_type for node in result.graph] == [node.op_type for node in plain.graph]
    assert "w" not in result.graph.initializers
    inputs = {"x": input_of(result)}
    np.testing.assert_array_equal(answers(result, inputs)[0], answers(plain, inputs)[0])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"method": "rtn"}, ["DequantizeLinear", "Cast", "MatMul"]),
        ({"method": "rtn", "scale_type": "float16"}, ["DequantizeLinear", "MatMul"]),
        ({"method": "rtn", "scale_type": "bfloat16"}, ["Cast", "DequantizeLinear", "Cast", "MatMul"]),
        ({"method": "gptq", "block_size": 32}, ["DequantizeLinear", "Cast", "MatMul"]),
    ],
)
def test_a_graph_of_float16(options: dict[str, object], wanted: list[str]) -> None:
    weights = RNG.normal(size=(96, 40)).astype(np.float16)
    model = model_of(MATMUL.replace("float[", "float16["), {"w": weights})
    inputs = {"x": RNG.normal(size=(50, 96)).astype(np.float16)}
    samples = Samples([[inputs["x"]]]) if options["method"] == "gptq" else None
    result = quantized(model, QuantizeInt4(samples=samples, **options))  # type: ignore[arg-type]
    assert [node.op_type for node in result.graph] == wanted
    maker = next(node for node in result.graph if node.op_type == "DequantizeLinear")
    assert json.loads(maker.metadata_props[NOTE])["method"] == options["method"]
    exact = inputs["x"].astype(np.float32) @ weights.astype(np.float32)
    for optimized in (False, True):
        (found,) = answers(result, inputs, optimized=optimized)
        assert found.dtype == np.float16
        assert 0 < np.linalg.norm(found - exact) < 0.2 * np.linalg.norm(exact)


def test_awq_leaves_a_graph_of_float16_whole() -> None:
    weights = RNG.normal(size=(96, 40)).astype(np.float16)
    model = model_of(MATMUL.replace("float[", "float16["), {"w": weights})
    x = correlated(200, 96).astype(np.float16) / np.float16(8)
    result = quantized(model, QuantizeInt4(method="awq", samples=Samples([[x]])))
    exact = x.astype(np.float32) @ weights.astype(np.float32)
    (found,) = answers(result, {"x": x})
    assert "Mul" in [node.op_type for node in result.graph]
    assert np.linalg.norm(found - exact) < 0.2 * np.linalg.norm(exact)


def test_a_weight_of_float64_that_is_cast_stays() -> None:
    text = "g (float[M,96] x) => (float[M,40] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    assert reasons(model_of(text, {"w": np.ones((96, 40), np.float64)}), QuantizeInt4()) == []
    text = "g (double[M,96] x) => (double[M,40] y) { f = Cast<to = 11>(w) y = MatMul(x, f) }"
    assert reasons(model_of(text, {"w": np.ones((96, 40), np.float32)}), QuantizeInt4()) == []


def test_a_cast_that_something_else_reads_stays() -> None:
    text = "g (float[M,96] x) => (float[M,40] y, float[96,40] z) { f = Cast<to = 1>(w) y = MatMul(x, f) z = Neg(f) }"
    model = model_of(text, {"w": np.ones((96, 40), np.float16)})
    assert reasons(model, QuantizeInt4()) == ["its weight 'f' is also read by Neg 'z'"]
    text = "g (float[M,96] x) => (float[M,40] y, float[96,40] f) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    model = model_of(text, {"w": np.ones((96, 40), np.float16)})
    assert reasons(model, QuantizeInt4()) == ["its weight 'f' is an output of the graph"]


def test_16_bits_that_would_not_become_fewer_stay() -> None:
    text = "g (float[M,2] x) => (float[M,40] y) { f = Cast<to = 1>(w) y = MatMul(x, f) }"
    model = model_of(text, {"w": np.ones((2, 40), np.float16)})
    assert reasons(model, QuantizeInt4()) == ["its weight 'f' would not become smaller"]
    model = model_of(text, {"w": np.ones((2, 40), np.float16)})
    assert QuantizeInt4(scale_type="float16", symmetric=True)(model).modified


# --- 3. Activations of 8 bits ---


@pytest.mark.parametrize("rounded", ["int8", "int8-rows"])
@pytest.mark.parametrize("graph", ["MatMul", "Gemm", "Gemm transB"])
def test_activations_are_rounded_while_the_model_runs(graph: str, rounded: str) -> None:
    text, shapes = GRAPHS[graph]
    model = model_of(text, weights_of(shapes))
    result, plain = (
        quantized(model, QuantizeInt4(method="rtn", activations=activations)) for activations in (rounded, "float32")
    )
    inputs = {"x": input_of(model)}
    (found,), (exact,), (again,) = answers(result, inputs), answers(plain, inputs), reference_answers(result, inputs)
    # Half of a step is 1/254 of the largest of a row, which is about 2.5 times the mean square of normal numbers.
    assert 0 < np.linalg.norm(found - exact) < 0.015 * np.linalg.norm(exact)
    np.testing.assert_allclose(found, again, rtol=1e-3, atol=1e-3)
    assert [node.op_type for node in result.graph].count("QuantizeLinear") == 1
    assert not QuantizeInt4(method="rtn", activations=rounded)(result.clone()).modified


@pytest.mark.parametrize("rounded", ["int8", "int8-rows"])
def test_activations_of_more_axes_that_two_products_read_are_rounded_once(rounded: str) -> None:
    text = "g (float[B,M,96] x) => (float[B,M,40] y, float[B,M,24] z) { y = MatMul(x, w) z = MatMul(x, v) }"
    model = model_of(text, weights_of({"w": (96, 40), "v": (96, 24)}))
    result = quantized(model, QuantizeInt4(method="rtn", activations=rounded))
    assert [node.op_type for node in result.graph].count("QuantizeLinear") == 1
    x = RNG.normal(size=(2, 3, 96)).astype(np.float32)
    plain = quantized(model, QuantizeInt4(method="rtn"))
    for found, exact in zip(answers(result, {"x": x}), answers(plain, {"x": x}), strict=True):
        assert found.shape == exact.shape
        assert 0 < np.linalg.norm(found - exact) < 0.015 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("depth", "block_size", "block"),
    [(128, 64, 64), (128, 16, 32), (96, 64, 32), (256, 0, 128), (192, 256, 64), (40, 64, 0), (72, 0, 0)],
)
def test_blocks_of_activations_divide_a_row_and_those_of_the_weights(depth: int, block_size: int, block: int) -> None:
    model = model_of(MATMUL.replace("96", str(depth)), weights_of({"w": (depth, 40)}))
    result = quantized(model, QuantizeInt4(method="rtn", activations="int8", block_size=block_size))
    (node,) = (node for node in result.graph if node.op_type == "QuantizeLinear")
    found = node.attributes.get_int("block_size", 0)
    assert found == block
    assert node.attributes.get_int("axis", 1) == (1 if block else 0)


def test_a_large_number_makes_the_steps_of_its_own_block_coarse() -> None:
    model = model_of(MATMUL, weights_of({"w": (96, 40)}))
    x = RNG.normal(size=(3, 96)).astype(np.float32)
    x[:, 5] = 1000
    other = x.copy()
    other[:, :32] = 0
    plain, blocks, rows = (
        quantized(model.clone(), QuantizeInt4(method="rtn", block_size=32, activations=each))
        for each in ("float32", "int8", "int8-rows")
    )

    def of_others(result: ir.Model) -> Floats:
        """What the blocks without the large number give."""
        nothing = np.where(np.arange(96) < 32, x, 0)
        return answers(result, {"x": x})[0] - answers(result, {"x": nothing})[0]

    exact = answers(plain, {"x": other})[0]
    errors = [np.linalg.norm(of_others(each) - exact) / np.linalg.norm(exact) for each in (blocks, rows)]
    assert errors[0] < 0.015
    assert errors[1] > 0.5


@pytest.mark.parametrize(
    ("text", "weight", "type_", "reason"),
    [
        (GRAPHS["Gemm transA"][0], (96, 40), np.float32, "its rows are turned"),
        (MATMUL.replace("float[", "float16["), (96, 40), np.float16, "what it reads is not float32: 'x'"),
        (MATMUL.replace("M,96", "0,96"), (96, 40), np.float32, "'x' has no elements"),
    ],
)
def test_activations_that_stay(text: str, weight: tuple[int, int], type_: type[np.generic], reason: str) -> None:
    model = model_of(text, {"w": RNG.normal(size=weight).astype(type_)})
    result = PassManager([QuantizeInt4(method="rtn", activations="int8")]).run(model)
    assert result.modified
    assert "QuantizeLinear" not in [node.op_type for node in model.graph]
    assert [miss.reason for miss in result.near_misses] == [f"its activations stay as they are: {reason}"]


def test_convolutions_keep_their_activations() -> None:
    text, shapes = GRAPHS["Conv"]
    result = quantized(model_of(text, weights_of(shapes)), QuantizeInt4(method="rtn", activations="int8"))
    assert [node.op_type for node in result.graph] == ["DequantizeLinear", "Conv"]
