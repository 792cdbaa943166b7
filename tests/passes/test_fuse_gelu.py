from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.reference import run_reference
from optimizer.testing import check_pass, models
from passes.fold_constants import FoldConstants
from passes.fuse_gelu import FuseGelu
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read, reasons

NUMBERS = """<float half = {0.5}, float one = {1}, float two = {2}, float root = {1.4142135},
    float inverse = {0.70710678}, float three = {3}, float cubic = {0.044715},
    float slope = {0.79788456}, float twice = {1.5957691},
    float quick = {1.702}>"""


def graph(nodes: str, outputs: str = "float[N,4] y", type_: str = "float", numbers: str = NUMBERS) -> str:
    return f"g ({type_}[N,4] x) => ({outputs}) {numbers} {{ {nodes} }}"


ERF = "a = Div(x, root) t = Erf(a) c = Add(t, one)"
TANH = """p = Pow(x, three) q = Mul(p, cubic) r = Add(x, q) a = Mul(r, slope) t = Tanh(a) c = Add(t, one)"""


@pytest.mark.parametrize(
    "nodes",
    [
        f"{ERF} d = Mul(x, c) y = Mul(d, half)",
        f"{ERF} d = Mul(c, x) y = Mul(half, d)",
        f"{ERF} d = Mul(x, half) y = Mul(d, c)",
        f"{ERF} d = Mul(half, x) y = Mul(c, d)",
        f"{ERF} d = Mul(c, half) y = Mul(x, d)",
        f"{ERF} d = Div(c, two) y = Mul(d, x)",
        f"{ERF} d = Mul(x, c) y = Div(d, two)",
        "a = Mul(x, inverse) t = Erf(a) c = Add(one, t) d = Mul(x, c) y = Mul(d, half)",
        "a = Mul(inverse, x) t = Erf(a) b = Mul(t, half) c = Add(b, half) y = Mul(c, x)",  # half goes inside
        "a = Div(x, root) t = Erf(a) d = Mul(x, half) e = Mul(d, t) y = Add(d, e)",  # multiplied out
        "a = Div(x, root) t = Erf(a) d = Mul(x, t) e = Add(x, d) y = Div(e, two)",
        "n = Neg(x) a = Div(n, root) t = Erf(a) c = Sub(one, t) d = Mul(x, c) y = Mul(d, half)",  # by erfc
    ],
)
def test_erf(nodes: str) -> None:
    assert_becomes(FuseGelu(), graph(nodes), "g (float[N,4] x) => (float[N,4] y) { y = Gelu(x) }")


@pytest.mark.parametrize(
    "nodes",
    [
        f"{TANH} d = Mul(x, half) y = Mul(d, c)",
        f"{TANH} d = Mul(half, x) y = Mul(c, d)",
        f"{TANH} d = Mul(x, c) y = Mul(half, d)",
        """s = Mul(x, x) p = Mul(s, x) q = Mul(cubic, p) r = Add(q, x) a = Mul(slope, r) t = Tanh(a) c = Add(one, t)
           d = Mul(half, c) y = Mul(x, d)""",
        """s = Mul(x, x) p = Mul(s, cubic) q = Add(p, one) r = Mul(x, q) a = Mul(slope, r) t = Tanh(a) c = Add(one, t)
           d = Mul(half, c) y = Mul(x, d)""",
        """s = Pow(x, two) p = Mul(x, s) q = Mul(cubic, p) r = Add(q, x) a = Mul(slope, r) t = Tanh(a) c = Add(one, t)
           d = Mul(half, c) y = Mul(x, d)""",
        "p = Pow(x, three) q = Mul(p, cubic) r = Add(x, q) a = Mul(r, twice) t = Sigmoid(a) y = Mul(x, t)",
    ],
)
def test_tanh(nodes: str) -> None:
    assert_becomes(FuseGelu(), graph(nodes), 'g (float[N,4] x) => (float[N,4] y) { y = Gelu<approximate = "tanh">(x) }')


def test_swish_has_an_operator_since_opset_24() -> None:
    quick = graph("a = Mul(x, quick) t = Sigmoid(a) y = Mul(x, t)")
    plain = graph("t = Sigmoid(x) y = Mul(t, x)")
    assert_becomes(FuseGelu(), quick, "g (float[N,4] x) => (float[N,4] y) { y = Swish<alpha = 1.702>(x) }", opset=24)
    assert_becomes(FuseGelu(), plain, "g (float[N,4] x) => (float[N,4] y) { y = Swish(x) }", opset=24)
    assert_stays(FuseGelu(), quick)
    assert_stays(FuseGelu(), plain)


def test_numbers_rounded_to_half_precision_are_still_these() -> None:
    names = ("half", "one", "cubic", "slope", "three")
    nodes = re.sub(rf"\b({'|'.join(names)})\b", r"\1_", f"{TANH} d = Mul(x, half) y = Mul(d, c)")
    casts = " ".join(f"{name}_ = Cast<to = 10>({name})" for name in names)
    model = read(graph(f"{casts} {nodes}", "float16[N,4] y", "float16"))
    FoldConstants()(model)
    assert [node.op_type for node in check_pass(FuseGelu(), model).graph] == ["Gelu"]


def test_double_precision_stays() -> None:
    """The numbers in the definition of `Gelu` are single precision, which ONNX Runtime takes at its word."""
    exact = NUMBERS.replace("float ", "double ").replace("0.79788456", "0.7978845608028654")
    text = graph(f"{TANH} d = Mul(x, half) y = Mul(d, c)", "double[N,4] y", "double", exact)
    (found,) = reasons(FuseGelu(), text)
    assert found == "Gelu of double is defined with numbers of single precision"


def test_x_may_itself_be_computed() -> None:
    assert_becomes(
        FuseGelu(),
        graph("z = Mul(x, two) a = Div(z, root) t = Erf(a) c = Add(t, one) d = Mul(z, c) y = Mul(d, half)"),
        "g (float[N,4] x) => (float[N,4] y) <float two = {2}> { z = Mul(x, two) y = Gelu(z) }",
    )


def test_everywhere() -> None:
    assert_becomes_everywhere(FuseGelu(), graph(f"{ERF} d = Mul(x, c) y = Mul(d, half)"), "Gelu")


def test_a_cheap_value_in_the_middle_may_have_other_users() -> None:
    assert_becomes(
        FuseGelu(),
        graph(f"{ERF} d = Mul(x, half) y = Mul(d, c) z = Relu(d)", "float[N,4] y, float[N,4] z"),
        """g (float[N,4] x) => (float[N,4] y, float[N,4] z) <float half = {0.5}> {
            d = Mul(x, half) y = Gelu(x) z = Relu(d) }""",
    )


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (f"{ERF} d = Mul(x, c) y = Mul(d, two)", "the factor of x is 2, not 0.5"),
        ("t = Erf(x) c = Add(t, one) d = Mul(x, c) y = Mul(d, half)", "the factor of x is 1, not 0.707106"),
        ("a = Div(x, root) t = Erf(a) c = Add(t, two) d = Mul(x, c) y = Mul(d, half)", "the factor of x is 1, not 0.5"),
        (TANH.replace("cubic", "half") + " d = Mul(x, half) y = Mul(d, c)", "the factor of x^3 is 0.39894"),
        ("a = Mul(x, quick) t = Sigmoid(a) y = Mul(x, t)", "x * Sigmoid(1.702 * x) is an operator at opset 24 only"),
    ],
)
def test_other_numbers_are_a_near_miss(nodes: str, reason: str) -> None:
    (found,) = reasons(FuseGelu(), graph(nodes))
    assert reason in found


@pytest.mark.parametrize(
    ("also", "outputs"), [("z = Relu(t)", "float[N,4] y, float[N,4] z"), ("", "float[N,4] y, float[N,4] t")]
)
def test_another_need_of_erf_is_a_near_miss(also: str, outputs: str) -> None:
    (found,) = reasons(FuseGelu(), graph(f"{ERF} d = Mul(x, c) y = Mul(d, half) {also}", outputs))
    assert "'t' is" in found
    assert "Erf would be computed twice" in found


@pytest.mark.parametrize(
    "text",
    [
        graph("t = Tanh(x) y = Mul(x, t)"),
        graph("t = Sigmoid(x) y = Mul(x, t)"),
        graph("t = Erf(x) c = Add(t, one) y = Mul(c, half)"),  # the distribution alone
        graph("t = Tanh(x) c = Add(t, one) d = Mul(x, c) y = Mul(d, half)"),  # not cubic
        "g (float[N,4] x, float[N,4] z) => (float[N,4] y) <float half = {0.5}, float one = {1}, float root = {1.4}> {"
        " a = Div(x, root) t = Erf(a) c = Add(t, one) d = Mul(z, c) y = Mul(d, half) }",  # times another value
        "g (float[N,4] x, float one) => (float[N,4] y) <float half = {0.5}, float root = {1.4142135}> {"
        " a = Div(x, root) t = Erf(a) c = Add(t, one) d = Mul(x, c) y = Mul(d, half) }",  # one is not constant
        # A constant with more axes than x stretches it.
        "g (float[4] x) => (float[1,4] y) <float[1,1] half = {0.5}, float one = {1}, float root = {1.4142135}> {"
        " a = Div(x, root) t = Erf(a) c = Add(t, one) d = Mul(x, c) y = Mul(d, half) }",
    ],
)
def test_something_else_is_no_near_miss(text: str) -> None:
    assert reasons(FuseGelu(), text) == []


def test_before_opset_20_it_stays() -> None:
    assert_stays(FuseGelu(), graph(f"{ERF} d = Mul(x, c) y = Mul(d, half)"), opset=18)


def test_what_a_graph_around_computes_once_is_not_drawn_into_a_loop() -> None:
    assert_stays(
        FuseGelu(),
        f"""g (float[N,4] x) => (float[T,N,4] y) {NUMBERS[:-1]}, int64 trips = {{2}}, bool go = {{1}}> {{ {ERF}
            y = Loop(trips, go) <body = b (int64 trip, bool more) => (bool again, float[N,4] y1) {{
                again = Identity(more) d = Mul(x, c) y1 = Mul(d, half) }}> }}""",
    )


def test_infinities_and_zeros_come_out_alike() -> None:
    model = read(graph(f"{ERF} d = Mul(x, c) y = Mul(d, half)"))
    inputs = [np.array([[np.inf, -np.inf, np.nan, -0.0], [0.0, 1e-30, -1e38, 1e38]], np.float32)]
    before = run_reference(model, inputs)[0]
    FuseGelu()(model)
    np.testing.assert_allclose(run_reference(model, inputs)[0], before)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("unary", "binary", "neutral", "constants")))
def test_property(model: ir.Model) -> None:
    check_pass(FuseGelu(), model)


def test_swish_is_not_used_where_onnx_runtime_cannot_run_it() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { t = Sigmoid(x) y = Mul(x, t) }"
    model = read(text, 25)
    assert not FuseGelu()(model).modified
