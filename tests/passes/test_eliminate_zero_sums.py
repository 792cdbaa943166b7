from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.eliminate_zero_sums import EliminateZeroSums
from tests.passes.transform import assert_becomes, assert_stays


def graph(nodes: str, outputs: str = "float[N,2] y") -> str:
    return f"""g (float[N,2] x) => ({outputs}) <float[2] zero = {{0,0}}, float[2] minus = {{-0.0,0}},
        float[2] b = {{1,2}}, float[2,2] w = {{1,2,3,4}}, float[1,1,2] deep = {{0,0}}, float[2] ones = {{1,1}}> {{
            {nodes} }}"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a = Add(x, zero) y = Add(a, b)", "y = Add(x, b)"),
        ("a = Add(zero, x) y = Add(b, a)", "y = Add(b, x)"),
        ("a = Sub(x, zero) c = Add(a, zero) y = Sigmoid(c)", "y = Sigmoid(x)"),
        ("a = Add(x, zero) y = Exp(a)", "y = Exp(x)"),
        ("a = Add(x, zero) y = LayerNormalization(a, ones, b)", "y = LayerNormalization(x, ones, b)"),
        ("a = Add(x, zero) c = Gelu(a) d = MatMul(c, w) e = Add(d, x) y = Add(e, zero)",
         "c = Gelu(x) d = MatMul(c, w) e = Add(d, x) y = Add(e, zero)"),  # only the last one is still needed
        ("a = Add(x, zero) c = Neg(a) y = Softmax(c)", "c = Neg(x) y = Softmax(c)"),
    ],
)  # fmt: skip
def test_where_the_sign_ends(before: str, after: str) -> None:
    assert_becomes(EliminateZeroSums(), graph(before), graph(after))


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Add(x, zero)",  # an output keeps its zeros
        "a = Add(x, zero) y = Relu(a)",
        "a = Add(x, zero) y = Reciprocal(a)",  # infinities of another sign
        "a = Add(x, zero) c = Div(x, a) y = Add(c, b)",
        "a = Add(x, zero) c = Atan(a) y = Add(c, b)",  # not known to be harmless
        "a = Add(x, b) y = Sigmoid(a)",  # not zero
        "a = Add(x, zero) y = LayerNormalization(a, ones)",  # adds nothing at its end
        "a = Add(x, zero) y = LayerNormalization(a, ones, minus)",
        "a = Add(x, zero) c = Relu(a) y = Add(c, minus)",
        "a = Add(x, zero) c = Neg(a) d = Sigmoid(c) y = Mul(d, a)",  # ends on one way only
    ],
)
def test_stays(nodes: str) -> None:
    assert_stays(EliminateZeroSums(), graph(nodes))


def test_a_zero_that_adds_axes_stays() -> None:
    assert_stays(EliminateZeroSums(), graph("a = Add(x, deep) y = Sigmoid(a)", "float[1,N,2] y"))


def test_what_a_branch_uses_stays() -> None:
    assert_stays(
        EliminateZeroSums(),
        """g (float[N] x, bool[1] c) => (float[N] y) <float zero = {0}> { a = Add(x, zero) y = If(c) <
            then_branch = t () => (float[N] p) { p = Sigmoid(a) },
            else_branch = e () => (float[N] q) { q = Exp(x) }> }""",
    )


def test_the_queries_of_attention_and_its_values() -> None:
    text = """g (float[N,S,4] x) => (float[N,S,4] y) <float zero = {0}> {
        a = Add(x, zero) y = Attention<q_num_heads = 2, kv_num_heads = 2>(INPUTS) }"""
    assert_becomes(EliminateZeroSums(), text.replace("INPUTS", "a, a, x"), text.replace("INPUTS", "x, x, x"))
    assert_stays(EliminateZeroSums(), text.replace("INPUTS", "x, x, a"))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(models(families=("neutral", "unary", "binary", "matmul", "if")))
def test_property(model: ir.Model) -> None:
    check_pass(EliminateZeroSums(), model)
