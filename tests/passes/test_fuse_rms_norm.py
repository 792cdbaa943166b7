from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.fold_constants import FoldConstants
from passes.fuse_layer_norm import FuseLayerNorm
from passes.fuse_rms_norm import FuseRmsNorm
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read, reasons

CONSTANTS = """<float two = {2}, float one = {1}, float half = {0.5}, float minus_half = {-0.5}, float e = {1e-6},
    float count = {4}, float part = {0.25}, int64[1] last = {-1}, float[4] g = {1,2,3,4}>"""
MEAN = "p = Pow(x, two) v = ReduceMean(p, last)"
FUSED = """g (float[N,4] x) => (float[N,4] y) <float[4] g = {1,2,3,4}> {
    y = RMSNormalization<axis = -1, epsilon = 1e-6>(x, g) }"""


def graph(nodes: str, outputs: str = "float[N,4] y", inputs: str = "float[N,4] x") -> str:
    return f"g ({inputs}) => ({outputs}) {CONSTANTS} {{ {nodes} }}"


@pytest.mark.parametrize(
    "nodes",
    [
        f"{MEAN} w = Add(v, e) s = Sqrt(w) n = Div(x, s) y = Mul(n, g)",
        f"{MEAN} w = Add(e, v) s = Sqrt(w) i = Reciprocal(s) n = Mul(x, i) y = Mul(g, n)",
        f"{MEAN} w = Add(v, e) s = Sqrt(w) i = Div(one, s) n = Mul(i, x) y = Mul(g, n)",
        f"{MEAN} w = Add(v, e) i = Pow(w, minus_half) n = Mul(x, i) y = Mul(g, n)",
        f"{MEAN} w = Add(v, e) s = Pow(w, half) n = Div(x, s) y = Mul(g, n)",
        f"{MEAN} w = Add(v, e) r = Reciprocal(w) i = Sqrt(r) n = Mul(x, i) y = Mul(g, n)",
        f"{MEAN} w = Add(v, e) s = Sqrt(w) i = Reciprocal(s) n = Mul(i, g) y = Mul(x, n)",  # the scale inside
        f"{MEAN} w = Add(v, e) s = Sqrt(w) i = Reciprocal(s) n = Mul(x, g) y = Mul(n, i)",
        f"{MEAN} w = Add(v, e) s = Sqrt(w) n = Mul(g, x) y = Div(n, s)",
        "p = Mul(x, x) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w) n = Div(x, s) y = Mul(n, g)",
        "p = Mul(x, x) v = ReduceSum(p, last) m = Div(v, count) w = Add(m, e) s = Sqrt(w) n = Div(x, s) y = Mul(n, g)",
        "p = Mul(x, x) v = ReduceSum(p, last) m = Mul(part, v) w = Add(m, e) s = Sqrt(w) n = Div(x, s) y = Mul(n, g)",
    ],
)
def test_every_way_to_write_it(nodes: str) -> None:
    assert_becomes(FuseRmsNorm(), graph(nodes), FUSED)


def test_without_a_scale() -> None:
    assert_becomes(
        FuseRmsNorm(),
        graph(f"{MEAN} w = Add(v, e) s = Sqrt(w) y = Div(x, s)"),
        """g (float[N,4] x) => (float[N,4] y) <float[4] ones = {1,1,1,1}> {
            y = RMSNormalization<axis = -1, epsilon = 1e-6>(x, ones) }""",
    )


def test_over_two_axes_and_without_epsilon() -> None:
    assert_becomes(
        FuseRmsNorm(),
        """g (float[N,2,2] x) => (float[N,2,2] y) <int64[2] axes = {2,1}, float[1,2,2] g = {1,2,3,4}> {
            p = Mul(x, x) v = ReduceMean(p, axes) s = Sqrt(v) n = Div(x, s) y = Mul(n, g) }""",
        """g (float[N,2,2] x) => (float[N,2,2] y) <float[2,2] g = {1,2,3,4}> {
            y = RMSNormalization<axis = -2, epsilon = 0.0>(x, g) }""",
    )


@pytest.mark.parametrize(("type_", "number"), [("float16", 10), ("bfloat16", 16)])
def test_casts_to_single_precision_and_back_fall_away(type_: str, number: int) -> None:
    """As transformers writes Llama: that is what the operator does anyway."""
    model = read(f"""g ({type_}[N,4] x, {type_}[4] g) => ({type_}[N,4] y) <float two = {{2}}, float e = {{1e-6}},
        int64[1] last = {{-1}}> {{ c = Cast<to = 1>(x) p = Pow(c, two) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w)
            i = Reciprocal(s) n = Mul(c, i) h = Cast<to = {number}>(n) y = Mul(g, h) }}""")
    result = FuseRmsNorm()(model).model
    (node,) = result.graph
    assert node.op_type == "RMSNormalization"
    assert "stash_type" not in node.attributes
    assert [value.name for value in node.inputs if value is not None] == ["x", "g"]


def test_a_scale_in_single_precision_keeps_the_casts() -> None:
    text = """g (float16[N,4] x) => (float16[N,4] y) <float two = {2}, float e = {1e-6}, int64[1] last = {-1},
        float[4] g = {1,2,3,4}> { c = Cast<to = 1>(x) p = Pow(c, two) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w)
            n = Div(c, s) m = Mul(g, n) y = Cast<to = 10>(m) }"""
    assert_becomes(
        FuseRmsNorm(),
        text,
        """g (float16[N,4] x) => (float16[N,4] y) <float[4] g = {1,2,3,4}> {
            c = Cast<to = 1>(x) m = RMSNormalization<axis = -1, epsilon = 1e-6>(c, g) y = Cast<to = 10>(m) }""",
    )


@pytest.mark.parametrize("type_", [ir.DataType.FLOAT16, ir.DataType.DOUBLE])
def test_the_precision_of_the_formula_stays(type_: ir.DataType) -> None:
    model = read(f"""g ({type_.name.lower()}[N,4] x) => ({type_.name.lower()}[N,4] y) <float e = {{1e-4}},
        int64[1] last = {{-1}}> {{ p = Mul(x, x) v = ReduceMean(p, last) k = Cast<to = {type_.value}>(e) w = Add(v, k)
        s = Sqrt(w) y = Div(x, s) }}""")
    FoldConstants()(model)
    (node,) = check_pass(FuseRmsNorm(), model).graph
    assert node.attributes["stash_type"].as_int() == type_.value


def test_everywhere() -> None:
    assert_becomes_everywhere(
        FuseRmsNorm(), graph(f"{MEAN} w = Add(v, e) s = Sqrt(w) y = Div(x, s)"), "RMSNormalization"
    )


def test_the_root_mean_square_of_a_difference_is_left_to_layer_norm() -> None:
    nodes = "m = ReduceMean(x, last) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w)"
    assert_stays(FuseRmsNorm(), graph(f"{nodes} y = Div(d, s)"))


ROOT = "w = Add(v, e) s = Sqrt(w) y = Div(x, s)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (graph(f"{MEAN} s = Sqrt(v) w = Add(s, e) y = Div(x, w)"), "epsilon is added to the root 's', not under it"),
        (graph(f"{MEAN} s = Sqrt(v) w = Add(e, s) i = Reciprocal(w) y = Mul(x, i)"), "epsilon is added to the root"),
        (
            graph(f"{MEAN} {ROOT} z = Relu(v)", "float[N,4] y, float[N,1] z"),
            "'v' is used by 'Relu(z)' too, so ReduceMean 'v' would",
        ),
        (graph(f"{MEAN} {ROOT}", "float[N,4] y, float[N,1] v"), "'v' is an output of the graph"),
        (graph(f"{MEAN} {ROOT}", "float[N,4] y, float[N,1] s"), "'s' is an output of the graph"),
        (
            graph(f"p = Mul(x, x) f = Neg(last) v = ReduceMean(p, f) {ROOT}"),
            "the axes of ReduceMean 'v' are not constant",
        ),
        (
            graph(f"p = Mul(x, x) v = ReduceMean<keepdims = 0>(p, last) {ROOT}", "float[4,4] y", "float[4,4] x"),
            "ReduceMean 'v' does not keep the axes",
        ),
        (graph(f"{MEAN} {ROOT}", "float[4,N] y", "float[4,N] x"), "the sizes of the last 1 axes of 'x' are not known"),
        (
            f"g (float[N,4,2] x) => (float[N,4,2] y) <float e = {{1e-6}}, int64[1] last = {{1}}> {{"
            f"p = Mul(x, x) v = ReduceMean(p, last) {ROOT} }}",
            "the axes [1] are not the last ones of 'x', which has rank 3",
        ),
        (
            f"g (float[N,4] x, float e) => (float[N,4] y) <int64[1] last = {{1}}> {{"
            f"p = Mul(x, x) v = ReduceMean(p, last) {ROOT} }}",
            "epsilon 'e' is not one constant number",
        ),
        (
            graph(f"{MEAN} w = Sub(v, e) u = Neg(e) q = Add(v, minus_half) s = Sqrt(q) y = Div(x, s)"),
            "epsilon 'minus_half' is not one constant number of at least 0",
        ),
        (
            "g (float[N,4] x, float[1,4] z) => (float[N,4] y) <float e = {1e-6}, int64[1] last = {1}> {"
            "p = Mul(x, x) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w) n = Mul(x, z) y = Div(n, s) }",
            "the factor 'z' has not the shape of the normalized axes",
        ),
    ],
)
def test_near_misses(text: str, reason: str) -> None:
    (found,) = reasons(FuseRmsNorm(), text)
    assert reason in found


@pytest.mark.parametrize(
    "text",
    [
        graph("p = Mul(x, x) v = ReduceMean(p, last) w = Add(v, e) y = Div(x, w)"),  # no root
        graph("v = ReduceMean(x, last) w = Add(v, e) s = Sqrt(w) y = Div(x, s)"),  # no squares
        graph("p = Mul(x, x) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w) y = Div(s, x)"),  # upside down
        graph("p = Mul(x, x) v = ReduceMax(p, last) w = Add(v, e) s = Sqrt(w) y = Div(x, s)"),
        graph("p = Pow(x, half) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w) y = Div(x, s)"),
        graph(
            "p = Mul(x, x) v = ReduceSum(p, last) m = Div(v, two) w = Add(m, e) s = Sqrt(w) y = Div(x, s)"
        ),  # not mean
        graph("q = Neg(x) p = Mul(q, q) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w) y = Div(x, s)"),
        graph("s = Sqrt(x) y = Div(x, s)"),
    ],
)
def test_something_else_is_no_near_miss(text: str) -> None:
    assert reasons(FuseRmsNorm(), text) == []


@pytest.mark.parametrize(
    ("inputs", "after"),
    [
        ("float[N,4] x, float[N,4] g", "y = Mul(n, g)"),  # differs from row to row
        ("float[N,4] x, float[N,4] g", "y = Mul(n, n)"),
        ("float[N,4] x, float[1,1,4] g", "z = Mul(n, g) k = Shape(x) y = Reshape(z, k)"),  # adds an axis
    ],
)
def test_a_factor_of_another_shape_stays(inputs: str, after: str) -> None:
    assert_stays(
        FuseRmsNorm(),
        f"""g ({inputs}) => (float[N,4] y) <float[4] ones = {{1,1,1,1}}> {{
            n = RMSNormalization(x, ones) {after} }}""",
    )


@pytest.mark.parametrize(("scale", "outputs"), [("1,1,2,1", "float[N,4] y"), ("1,1,1,1", "float[N,4] y, float[N,4] n")])
def test_a_scale_is_taken_over_only_by_ones_that_nothing_else_uses(scale: str, outputs: str) -> None:
    assert_stays(
        FuseRmsNorm(),
        f"""g (float[N,4] x, float[4] g) => ({outputs}) <float[4] ones = {{{scale}}}> {{
            n = RMSNormalization(x, ones) y = Mul(n, g) }}""",
    )


def test_a_factor_of_another_type_than_x_stays() -> None:
    """By the standard the result has the type of the scale; ONNX's own inference gives it that of `x`."""
    text = """g (float16[N,4] x, float[4] g) => (float[N,4] y) <float[4] ones = {1,1,1,1}> {
        n = RMSNormalization(x, ones) y = Mul(n, g) }"""
    assert reasons(FuseRmsNorm(), text) == []


def test_before_opset_23_it_stays() -> None:
    assert_stays(FuseRmsNorm(), graph(f"{MEAN} {ROOT}"), opset=22)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("unary", "binary", "neutral", "constants")))
def test_property(model: ir.Model) -> None:
    check_pass(FuseRmsNorm(), model)
    check_pass(FuseLayerNorm(), model)
