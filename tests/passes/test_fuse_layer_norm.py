from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.fuse_layer_norm import FuseLayerNorm
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read, reasons

CONSTANTS = """<float two = {2}, float one = {1}, float minus_half = {-0.5}, float e = {1e-5}, int64[1] last = {-1},
    int64[1] first = {0}, float[4] g = {1,2,3,4}, float[4] b = {5,6,7,8}>"""
CENTRE = "m = ReduceMean(x, last) d = Sub(x, m)"
VARIANCE = f"{CENTRE} p = Mul(d, d) v = ReduceMean(p, last)"
AFFINE = "r = Mul(n, g) y = Add(r, b)"
FUSED = """g (float[N,4] x) => (float[N,4] y) <float[4] g = {1,2,3,4}, float[4] b = {5,6,7,8}> {
    y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, g, b) }"""


def graph(nodes: str, outputs: str = "float[N,4] y", inputs: str = "float[N,4] x") -> str:
    return f"g ({inputs}) => ({outputs}) {CONSTANTS} {{ {nodes} }}"


@pytest.mark.parametrize(
    "nodes",
    [
        f"{CENTRE} p = Pow(d, two) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w) n = Div(d, s) {AFFINE}",
        f"{VARIANCE} w = Add(e, v) s = Sqrt(w) i = Reciprocal(s) n = Mul(i, d) r = Mul(g, n) y = Add(b, r)",
        f"{VARIANCE} w = Add(v, e) i = Pow(w, minus_half) n = Mul(d, i) {AFFINE}",
        f"{VARIANCE} w = Add(v, e) s = Sqrt(w) i = Div(one, s) n = Mul(d, i) {AFFINE}",
        f"{VARIANCE} w = Add(v, e) s = Sqrt(w) c = Mul(g, d) r = Div(c, s) y = Add(r, b)",
        f"{VARIANCE} w = Add(v, e) s = Sqrt(w) i = Reciprocal(s) k = Mul(i, g) r = Mul(d, k) y = Add(r, b)",
        f"{VARIANCE} w = Add(v, e) s = Sqrt(w) c = Sub(x, m) n = Div(c, s) {AFFINE}",  # centred twice
        """m = ReduceMean(x, last) o = Neg(m) d = Add(x, o) p = Mul(d, d) v = ReduceMean(p, last) w = Add(v, e)
           s = Sqrt(w) n = Div(d, s) r = Mul(n, g) y = Add(r, b)""",
        # As TensorFlow writes it.
        f"""{VARIANCE} w = Add(v, e) s = Sqrt(w) i = Reciprocal(s) k = Mul(i, g) q = Mul(m, k) t = Sub(b, q)
           r = Mul(x, k) y = Add(r, t)""",
        f"""{VARIANCE} w = Add(v, e) i = Pow(w, minus_half) k = Mul(g, i) q = Mul(k, m) t = Sub(b, q)
           r = Mul(k, x) y = Add(t, r)""",
    ],
)
def test_every_way_to_write_it(nodes: str) -> None:
    assert_becomes(FuseLayerNorm(), graph(nodes), FUSED)


def test_as_the_older_exporter_writes_it() -> None:
    text = """g (float[N,4] x) => (float[N,4] y) <float two = {2}, float e = {1e-5}, float[4] g = {1,2,3,4}> {
        m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<axes = [-1]>(p) w = Add(v, e)
        s = Sqrt(w) n = Div(d, s) y = Mul(n, g) }"""
    wanted = """g (float[N,4] x) => (float[N,4] y) <float[4] g = {1,2,3,4}> {
        y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, g) }"""
    assert_becomes(FuseLayerNorm(), text, wanted, opset=17)
    assert_stays(FuseLayerNorm(), text, opset=16)


ROOT = "w = Add(v, e) s = Sqrt(w) y = Div(d, s)"
INVERSE = "w = Add(v, e) s = Sqrt(w) i = Reciprocal(s)"


def test_over_two_axes_with_a_stretched_scale() -> None:
    assert_becomes(
        FuseLayerNorm(),
        """g (float[N,2,2] x) => (float[N,2,2] y) <int64[2] axes = {1,2}, float e = {1e-5}, float k = {3},
            float[2,1] b = {1,2}> { m = ReduceMean(x, axes) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, axes)
            w = Add(v, e) s = Sqrt(w) n = Div(d, s) r = Mul(n, k) y = Add(r, b) }""",
        """g (float[N,2,2] x) => (float[N,2,2] y) <float[2,2] g = {3,3,3,3}, float[2,2] b = {1,1,2,2}> {
            y = LayerNormalization<axis = -2, epsilon = 1e-5>(x, g, b) }""",
    )


def test_casts_to_single_precision_and_back_fall_away() -> None:
    result = assert_becomes(
        FuseLayerNorm(),
        """g (float16[N,4] x, float16[4] g, float16[4] b) => (float16[N,4] y) <float e = {1e-5}, int64[1] last = {-1}> {
            x32 = Cast<to = 1>(x) m = ReduceMean(x32, last) d = Sub(x32, m) p = Mul(d, d) v = ReduceMean(p, last)
            w = Add(v, e) s = Sqrt(w) n = Div(d, s) h = Cast<to = 10>(n) r = Mul(h, g) y = Add(r, b) }""",
        """g (float16[N,4] x, float16[4] g, float16[4] b) => (float16[N,4] y) {
            y = LayerNormalization<axis = -1, epsilon = 1e-5>(x, g, b) }""",
    )
    assert len(list(result.graph)) == 1


def test_everywhere() -> None:
    assert_becomes_everywhere(FuseLayerNorm(), graph(f"{VARIANCE} {ROOT}"), "LayerNormalization")


def test_what_was_centred_may_have_other_users() -> None:
    model = read(graph(f"{VARIANCE} {ROOT} z = Relu(d)", "float[N,4] y, float[N,4] z"))
    result = check_pass(FuseLayerNorm(), model)
    assert sorted(node.op_type for node in result.graph) == ["LayerNormalization", "ReduceMean", "Relu", "Sub"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (graph(f"{VARIANCE} s = Sqrt(v) w = Add(s, e) y = Div(d, w)"), "epsilon is added to the root 's', not"),
        (
            graph(f"{VARIANCE} {ROOT} z = Relu(v)", "float[N,4] y, float[N,1] z"),
            "'v' is used by 'Relu(z)' too, so ReduceMean 'v' would",
        ),
        (graph(f"{VARIANCE} {ROOT}", "float[N,4] y, float[N,1] v"), "'v' is an output of the graph"),
        (graph(f"{VARIANCE} {ROOT}", "float[4,N] y", "float[4,N] x"), "the sizes of the last 1 axes of 'x'"),
        (
            graph(f"m = ReduceMean(x, first) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last) {ROOT}"),
            "the mean is over the axes [0], the variance over [1]",
        ),
        (
            graph(f"m = ReduceMean(x, first) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, first) {ROOT}"),
            "the axes [0] are not the last ones of 'x', which has rank 2",
        ),
        (
            graph(
                f"k = Neg(last) m = ReduceMean(x, k) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last) {ROOT}",
            ),
            "the axes of ReduceMean 'm' are not constant",
        ),
        (
            graph(
                f"{VARIANCE} {INVERSE} q = Mul(m, i) t = Sub(z, q) r = Mul(x, i) y = Add(r, t)",
                inputs="float[N,4] x, float[N,4] z",
            ),
            "the summand 'z' has not the shape of the normalized axes",
        ),
    ],
)
def test_near_misses(text: str, reason: str) -> None:
    (found,) = reasons(FuseLayerNorm(), text)
    assert reason in found


@pytest.mark.parametrize(
    "text",
    [
        graph("p = Mul(x, x) v = ReduceMean(p, last) w = Add(v, e) s = Sqrt(w) y = Div(x, s)"),  # not centred
        graph("m = ReduceMean(x, last) y = Sub(x, m)"),
        graph(f"{VARIANCE} w = Add(v, e) s = Sqrt(w) y = Div(x, s)"),  # another numerator
        graph(f"{VARIANCE} {INVERSE} q = Mul(v, i) t = Sub(b, q) r = Mul(x, i) y = Add(r, t)"),  # not the mean
        graph(f"m = ReduceMax(x, last) d = Sub(x, m) p = Mul(d, d) v = ReduceMean(p, last) {ROOT}"),
        graph(f"m = ReduceMean(x, last) d = Sub(m, x) p = Mul(d, d) v = ReduceMean(p, last) {ROOT}"),  # negated
    ],
)
def test_something_else_is_no_near_miss(text: str) -> None:
    assert reasons(FuseLayerNorm(), text) == []


@pytest.mark.parametrize(
    ("inputs", "nodes"),
    [
        ("float[N,4] x, float[N,4] b", "n = LayerNormalization(x, ones) y = Add(n, b)"),  # differs from row to row
        ("float[N,4] x, float[4] b", "n = LayerNormalization(x, ones, ones) y = Add(n, b)"),  # has one
        ("float[N,4] x, float[4] b", "n = LayerNormalization(x, ones, ones) y = Mul(n, b)"),
        ("float[N,4] x, float[4] b", "n = LayerNormalization(x, ones) y = Div(n, b)"),
        ("float[N,4] x, float[4] b", "n = LayerNormalization(x, twos) y = Mul(n, b)"),  # has a scale
        ("float[N,4] x, float[4] b", "n, m = LayerNormalization(x, ones) o = Add(n, b) y = Sub(o, m)"),
        ("float[N,4] x, float[4] b", "n = LayerNormalization(x, ones) o = Add(n, b) y = Sub(o, n)"),
    ],
)
def test_a_factor_or_a_bias_stays(inputs: str, nodes: str) -> None:
    constants = "<float[4] ones = {1,1,1,1}, float[4] twos = {2,2,2,2}>"
    assert_stays(FuseLayerNorm(), f"g ({inputs}) => (float[N,4] y) {constants} {{ {nodes} }}")


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("unary", "binary", "neutral", "constants")))
def test_property(model: ir.Model) -> None:
    check_pass(FuseLayerNorm(), model)
