"""lower-opset."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer import optimize
from optimizer.errors import PrecisionError, TargetError, UnsupportedError
from optimizer.ir.shapes import Shapes
from optimizer.ir.walk import all_nodes
from optimizer.target import OnnxLimits, Target
from optimizer.testing import check_pass, models
from passes.lower_opset import LowerOpset
from passes.lowering.fit import misfit
from tests.passes.bodies import wrapped
from tests.passes.transform import assert_stays, read


def lowered(text: str, to: int, opset: int = 23) -> ir.Model:
    """The model in an older opset: it computes the same, and every node is one of that opset."""
    result = check_pass(LowerOpset(to), read(text, opset))
    shapes = Shapes(result)
    assert [misfit(node, to, shapes) for node in all_nodes(result) if not node.domain] == [None] * sum(
        not node.domain for node in all_nodes(result)
    )
    assert result.opset_imports[""] == to
    return result


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


# --- 1. Operators that the older opset lacks ---


@pytest.mark.parametrize(
    ("call", "to"),
    [
        ("Gelu(x)", 17),
        ('Gelu<approximate = "tanh">(x)', 17),
        ("HardSwish(x)", 13),
        ("Mish(x)", 17),
        ("Swish<alpha = 1.5>(x)", 23),
        ("RMSNormalization(x, s)", 17),
        ("LayerNormalization(x, s)", 16),
        ("LayerNormalization(x, s, s)", 13),
        ("LayerNormalization<axis = 1>(x, s2)", 13),
        ("GroupNormalization<num_groups = 2>(x, s3, s3)", 20),
        ("Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x)", 17),
        ("Attention<q_num_heads = 2, kv_num_heads = 1, is_causal = 1>(x, k, k)", 13),
    ],
)
def test_an_operator_becomes_its_body(call: str, to: int) -> None:
    model = lowered(
        f"""g (float[2,6,8] x, float[2,6,4] k, float[8] s, float[6,8] s2, float[6] s3) => (float[2,6,8] y)
            {{ y = {call} }}""",
        to,
        opset=24,
    )
    assert call.partition("(")[0].partition("<")[0] not in kinds(model)


def test_a_layer_normalization_far_from_zero() -> None:
    """The mean of the squares less the square of the mean would have no digit left."""
    text = "g (float[3,64] x, float[64] s) => (float[3,64] y) { y = LayerNormalization(x, s) }"
    model = read(text)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32) + 3000
    scale = np.ones(64, np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    given = optimize(model, "onnx:13", cache=False)(x, scale)
    assert np.linalg.norm(given - expected) < 1e-3 * np.linalg.norm(expected)


def test_a_body_needs_types_that_are_known() -> None:
    model = read(wrapped("g (float[2] x) => (float[2] y) { y = Gelu(x) }", "function"))
    with pytest.raises(UnsupportedError, match="Gelu cannot be said in opset 17"):
        LowerOpset(17)(model)


# --- 2. Other forms of the same ---


@pytest.mark.parametrize("kind", ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"])
def test_axes_of_a_reduction(kind: str) -> None:
    text = f"""g (float[2,3,4] x) => (float y) <int64[2] axes = {{1, -1}}, int64[0] all = {{}}> {{
        p = Sigmoid(x) a = Reduce{kind}<keepdims = 0>(p, axes) b = Reduce{kind}<keepdims = 0>(a, all) y = Abs(b) }}"""
    model = lowered(text, 17)
    assert [len(node.inputs) for node in model.graph] == [1, 1, 1, 1]


def test_a_reduction_over_nothing() -> None:
    refused("g (float[2] x) => (float[2] y) { y = ReduceMax<noop_with_empty_axes = 1>(x) }", 17)


def test_parts_of_a_split() -> None:
    text = """g (float[7,N] x) => (float[3,N] a, float[3,N] b, float[1,N] c) {
        a, b, c = Split<num_outputs = 3>(x) }"""
    assert len(lowered(text, 17).graph[0].inputs) == 2
    refused(text.replace("7", "M").replace("float[3,N] a", "float[A,N] a"), 17)


def test_pads_of_some_axes() -> None:
    text = """g (float[2,N,4] x) => (float[2,P,5] y)
        <int64[4] pads = {1,-1,2,2}, int64[2] axes = {1,-1}, float v = {3}> { y = Pad(x, pads, v, axes) }"""
    lowered(text, 17)
    refused(text.replace("(float[2,N,4] x)", "(float[2,N,4] x, int64[4] pads)"), 17)


@pytest.mark.parametrize(
    "what",
    [
        "float[2] f = {2.0, 1.5}> { y = Resize<axes = [2,3]>(x, , f)",
        "int64[2] f = {6, 9}> { y = Resize<axes = [3,2]>(x, , , f)",
    ],
)
def test_a_resize_of_some_axes(what: str) -> None:
    text = f"g (float[1,2,4,6] x) => (float[1,2,H,W] y) <{what} }}"
    lowered(text, 17)
    refused(text.replace("<axes", "<antialias = 1, axes"), 17)


def test_modes_of_a_grid_sample() -> None:
    text = """g (float[1,2,4,6] x, float[1,3,3,2] grid) => (float[1,2,3,3] y) {
        p = Tanh(grid) y = GridSample<mode = "cubic">(x, p) }"""
    assert lowered(text, 17).graph[1].attributes["mode"].as_string() == "bicubic"
    refused("g (float[1,2,4,6,5] x, float[1,3,3,3,3] p) => (float[1,2,3,3,3] y) { y = GridSample(x, p) }", 17)


@pytest.mark.parametrize("axis", ["", ", , axis"])
def test_the_axis_of_a_transform(axis: str) -> None:
    text = f"""g (float[2,3,8,1] x) => (float[2,3,A,2] y) <int64 axis = {{2}}> {{ y = DFT(x{axis}) }}"""
    assert lowered(text, 17).graph[0].attributes["axis"].as_int() == 2


def test_the_type_of_codes() -> None:
    text = """g (float[2,3] x) => (int8[2,3] y) <float s = {0.1}> { y = QuantizeLinear<output_dtype = 3>(x, s) }"""
    assert lowered(text, 17).graph[0].inputs[2] is not None


def test_some_sizes() -> None:
    text = "g (float[2,N,4] x) => (int64[2] y) { y = Shape<start = 1>(x) }"
    assert kinds(lowered(text, 13)) == ["Shape", "Slice"]


def test_zeros_in_a_shape() -> None:
    text = "g (float[2,6] x) => (float[3,4] y) <int64[2] s = {3,4}> { y = Reshape<allowzero = 1>(x, s) }"
    lowered(text, 13)
    refused(text.replace("{3,4}", "{0,4}").replace("[2,6]", "[0,6]").replace("[3,4]", "[0,4]"), 13)


# --- 3. Defaults ---


def test_a_default_falls_away() -> None:
    pool = "g (float[1,2,8,8] x) => (float[1,2,H,W] y) { y = AveragePool<kernel_shape = [3,3], dilations = [2,2]>(x) }"
    refused(pool, 17)
    norm = """g (float[2,3] x, float[3] s) => (float[2,3] y) {
        v = Exp(s) y = BatchNormalization<training_mode = 0>(x, s, s, s, v) }"""
    lowered(norm, 13)


def refused(text: str, to: int) -> None:
    with pytest.raises(UnsupportedError, match=f"cannot be said in opset {to} .*: ask for a later one"):
        LowerOpset(to)(read(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float16[2] x) => (bool[2] y) { y = IsInf(x) }", "float16. is newer there"),
        ("g (int32[2] x) => (int32[2] y) { y = BitwiseNot(x) }", "the operator is newer"),
        (
            'g (float[2] x) => (float[4] y) <int64[2] p = {1,1}> { y = Pad<mode = "wrap">(x, p) }',
            "mode='wrap' is newer",
        ),
    ],
)
def test_what_cannot_be_said(text: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        LowerOpset(17)(read(text))


def test_an_older_model_stays_as_it_is() -> None:
    assert_stays(LowerOpset(17), "g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=17)


def test_opsets_before_13() -> None:
    with pytest.raises(UnsupportedError, match="opset 12 is too old"):
        LowerOpset(12)(read("g (float[2] x) => (float[2] y) { y = Relu(x) }"))


@pytest.mark.parametrize("where", ["if", "loop", "function"])
def test_in_every_body(where: str) -> None:
    text = wrapped(
        "g (float[2,3] x) => (float[2,3] y) <int64[1] axes = {1}> { m = ReduceMax(x, axes) y = Sub(x, m) }", where
    )
    model = check_pass(LowerOpset(17), read(text))
    assert all(len(node.inputs) == 1 for node in all_nodes(model) if node.op_type == "ReduceMax")


@settings(max_examples=60, derandomize=True, deadline=None)
@given(model=models(max_steps=10))
def test_property(model: ir.Model) -> None:
    try:
        LowerOpset(17)(model.clone())
    except UnsupportedError as error:
        assert "ask for a later one" in str(error)
    else:
        check_pass(LowerOpset(17), model)


# --- The target ---


def test_the_target() -> None:
    assert str(Target.parse("onnx")) == "onnx"
    assert Target.parse("onnx:17").onnx == OnnxLimits(17)
    for text in ("onnx:17", "onnx:17+ai.onnx", "onnx:20+com.microsoft", "onnx+com.microsoft+ai.onnx.ml"):
        assert str(Target.parse(text)) == text


@pytest.mark.parametrize("text", ["onnx:12", "onnx:29", "onnx:x", "onnx:17+", "onnx:17+a b", "onnx:-1", "onnx17"])
def test_what_is_no_target(text: str) -> None:
    with pytest.raises(TargetError, match=r"17|unknown target"):
        Target.parse(text)


def test_four_bits_are_of_opset_21() -> None:
    model = read("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(PrecisionError, match="'int4' is not available for target 'onnx:20'"):
        optimize(model, "onnx:20", precision="int4")


def test_other_domains() -> None:
    text = """g (float[2,3] x) => (float[2,3] y) { y = com.microsoft.QuickGelu(x) }"""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]> {text}')
    assert optimize(model, "onnx:17", cache=False).graph.opset_imports[""] == 17
    assert optimize(model, "onnx+com.microsoft", cache=False).graph.opset_imports[""] == 23
    with pytest.raises(UnsupportedError, match=r"domain 'com.microsoft', and the target only allows ai.onnx"):
        optimize(model, "onnx+ai.onnx", cache=False)


def test_a_pass_of_the_caller_that_makes_newer_operators() -> None:
    text = "g (float[2] x) => (float[2] y) { y = Gelu(x) }"
    with pytest.raises(UnsupportedError, match=r"Gelu is not of opset 17"):
        optimize(read(text), "onnx:17", passes=[LowerOpset(23)], cache=False)
