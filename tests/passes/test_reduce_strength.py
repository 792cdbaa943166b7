from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.reduce_strength import ReduceStrength
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays

CONSTANTS = """<float two = {2}, float half = {0.5}, float minus = {-1}, float one = {1}, float eight = {8},
    float[4] powers = {1,2,-4,0.5}, float three = {3}, float zero = {0}, float tiny = {1e-45}, float huge = {1.7e38},
    float[1,1,1] deep = {2}, float[1,1,1] deep1 = {1}, float[1,1,1] deepm = {-1}, int64[1] last = {-1},
    int64[1] first = {0}>"""


def graph(nodes: str, inputs: str = "float[N,4] x", outputs: str = "float[N,4] y") -> str:
    return f"g ({inputs}) => ({outputs}) {CONSTANTS} {{ {nodes} }}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("y = Pow(x, two)", "y = Mul(x, x)"),
        ("y = Pow(x, minus)", "y = Reciprocal(x)"),
        ("y = Div(one, x)", "y = Reciprocal(x)"),
        ("a = Abs(x) y = Pow(a, half)", "a = Abs(x) y = Sqrt(a)"),
        ("a = Mul(x, x) m = ReduceMean(a, last) b = Add(m, one) c = Pow(b, half) y = Div(x, c)",
         "a = Mul(x, x) m = ReduceMean(a, last) b = Add(m, one) c = Sqrt(b) y = Div(x, c)"),
        ("a = Pow(x, two) b = Sigmoid(x) c = Div(a, b) d = Unsqueeze(c, last) e = Squeeze(d, last) y = Pow(e, half)",
         "a = Mul(x, x) b = Sigmoid(x) c = Div(a, b) d = Unsqueeze(c, last) e = Squeeze(d, last) y = Sqrt(e)"),
        ("y = Mul(x, minus)", "y = Neg(x)"),
        ("y = Mul(minus, x)", "y = Neg(x)"),
        ("a = Neg(x) y = Neg(a)", "y = Identity(x)"),
        ("a = Relu(x) b = Neg(a) y = Neg(b)", "y = Relu(x)"),
        ("a = Relu(x) b = Neg(a) y = Add(x, b)", "a = Relu(x) y = Sub(x, a)"),
        ("a = Relu(x) b = Neg(a) y = Add(b, x)", "a = Relu(x) y = Sub(x, a)"),
        ("a = Relu(x) b = Neg(a) y = Sub(x, b)", "a = Relu(x) y = Add(x, a)"),
        ("a = Relu(x) b = Neg(a) c = Neg(x) y = Mul(b, c)", "a = Relu(x) y = Mul(a, x)"),
        ("a = Relu(x) b = Neg(a) c = Neg(x) y = Div(b, c)", "a = Relu(x) y = Div(a, x)"),
        ("a = Exp(x) b = Reciprocal(a) y = Mul(b, x)", "a = Exp(x) y = Div(x, a)"),
        ("a = Exp(x) b = Reciprocal(a) y = Div(x, b)", "a = Exp(x) y = Mul(x, a)"),
        ("a = Neg(x) y = Abs(a)", "y = Abs(x)"),
        ("a = Relu(x) y = Relu(a)", "y = Relu(x)"),
        ("a = Abs(x) y = Abs(a)", "y = Abs(x)"),
        ("a = ReduceSum<keepdims = 0>(x, last) b = Unsqueeze(a, last) y = Sub(x, b)",
         "b = ReduceSum<keepdims = 1>(x, last) y = Sub(x, b)"),
        ("a = ReduceMax(x, last) b = Squeeze(a, last) c = Unsqueeze(b, first) d = Relu(c) y = Expand(x, d0)",
         "b = ReduceMax<keepdims = 0>(x, last) c = Unsqueeze(b, first) d = Relu(c) y = Expand(x, d0)"),
    ],
)  # fmt: skip
def test_rules(before: str, after: str) -> None:
    if "d0" in before:
        before, after = (
            text.replace("y = Expand(x, d0)", "t = Transpose(d) y = Sub(x, t)") for text in (before, after)
        )
    if after == "y = Identity(x)":
        before, after = f"z = Exp(x) {before.replace('(x)', '(z)')}", "y = Exp(x)"
    assert_becomes(ReduceStrength(), graph(before), graph(after))


def test_a_division_by_powers_of_two() -> None:
    vector = "float[4] d = {1,2,-4,0.5}", "float[4] d = {1,0.5,-0.25,2}"
    for divisor, factor in (("float d = {8}", "float d = {0.125}"), vector):
        text = "g (float[N,4] x) => (float[N,4] y) <CONSTANT> { y = OP(x, d) }"
        before = text.replace("CONSTANT", divisor).replace("OP", "Div")
        assert_becomes(ReduceStrength(), before, text.replace("CONSTANT", factor).replace("OP", "Mul"))


def test_truth_values_and_integers() -> None:
    assert_becomes(
        ReduceStrength(),
        "g (bool[N] c, float[N] a, float[N] b) => (float[N] y) { n = Not(c) y = Where(n, a, b) }",
        "g (bool[N] c, float[N] a, float[N] b) => (float[N] y) { y = Where(c, b, a) }",
    )
    assert_becomes(
        ReduceStrength(),
        "g (bool[N] c, bool[N] d) => (bool[N] y) { n = Not(c) m = Not(n) y = And(m, d) }",
        "g (bool[N] c, bool[N] d) => (bool[N] y) { y = And(c, d) }",
    )
    for op_type, a, b, c in (("Add", 3, 4, 7), ("Mul", 3, 4, 12), ("Add", 2**31 - 1, 2, 1 - 2**31)):
        assert_becomes(
            ReduceStrength(),
            f"""g (int32[N] x) => (int32[N] y) <int32 a = {{{a}}}, int32[1] b = {{{b}}}> {{
                p = {op_type}(x, a) y = {op_type}(b, p) }}""",
            f"g (int32[N] x) => (int32[N] y) <int32 c = {{{c}}}> {{ y = {op_type}(x, c) }}",
        )
    assert_becomes(
        ReduceStrength(),
        "g (int32[N] x) => (int32[N] y) <int32 two = {2}> { y = Pow(x, two) }",
        "g (int32[N] x) => (int32[N] y) { y = Mul(x, x) }",
    )


@pytest.mark.parametrize(
    "text",
    [
        graph("y = Pow(x, three)"),
        graph("y = Pow(x, half)"),  # x may be negative: rule 2
        graph("a = Relu(x) y = Pow(a, half)"),  # -0.0 passes Relu
        graph("a = ReduceMax(x, last) b = Abs(x) c = Sub(b, a) y = Pow(c, half)"),
        graph("a = Abs(x) b = Add(a, minus) y = Pow(b, half)"),
        graph("y = Div(x, three)"),
        graph("y = Div(x, tiny)"),  # its inverse is infinite
        graph("y = Div(x, huge)"),  # no power of two
        graph("y = Div(x, zero)"),
        graph("y = Div(two, x)"),
        graph("a = Pow(x, deep) k = Shape(x) y = Reshape(a, k)"),  # adds axes
        graph("a = Div(deep1, x) k = Shape(x) y = Reshape(a, k)"),
        graph("a = Mul(deepm, x) k = Shape(x) y = Reshape(a, k)"),
        graph("y = Pow(x, p)", "float[N,4] x, float p"),
        graph("a = Neg(x) b = Relu(x) c = Add(a, b) y = Mul(c, a)"),  # another user
        graph("a = Neg(x) b = Relu(x) y = Mul(a, b)"),
        graph("a = Neg(x) b = Relu(x) y = Sub(a, b)"),
        graph("a = Reciprocal(x) b = Exp(x) c = Mul(a, b) y = Add(c, a)"),
        graph("a = Reciprocal(x) b = Exp(x) y = Div(a, b)"),
        graph("a = Floor(x) y = Ceil(a)"),
        graph("a = Mul(x, three) y = Mul(a, three)"),  # may overflow in between
        graph("a = ReduceSum<keepdims = 0>(x, first) y = Unsqueeze(a, last)", outputs="float[4,1] y"),  # other axes
        graph("a = ReduceSum<keepdims = 0>(x, last) b = Unsqueeze(a, last) c = Unsqueeze(a, first) d = Mul(b, c) "
              "e = ReduceSum(d, last) y = Add(x, e)"),
        "g (int32[N] x) => (int32[N] y) <int32 a = {8}> { y = Div(x, a) }",  # truncates
        "g (int32[N] x) => (int32[N] y) <int32 a = {2}, int32 b = {3}> { p = Add(x, a) q = Mul(p, b) y = Add(p, q) }",
        "g (int32[N] x) => (int32[N] y) <int32 m = {-1}> { y = Mul(x, m) }",
    ],
)  # fmt: skip
def test_stays(text: str) -> None:
    assert_stays(ReduceStrength(), text)


def test_half_precision_has_other_limits() -> None:
    for number, becomes in ((2.0**14, "Mul"), (2.0**15, "Div"), (2.0**-16, "Div")):
        model = ir.from_onnx_text(
            '<ir_version: 10, opset_import: ["" : 23]> g (float16[N] x, float16 d) => (float16[N] y) { y = Div(x, d) }'
        )
        divisor = model.graph.inputs.pop()
        divisor.const_value = ir.tensor([number], dtype=ir.DataType.FLOAT16)
        divisor.shape = ir.Shape([1])
        model.graph.register_initializer(divisor)
        (node,) = check_pass(ReduceStrength(), model).graph
        assert node.op_type == becomes, number


def test_everywhere() -> None:
    text = "g (float[N,4] x) => (float[N,4] y) { a = Exp(x) b = Reciprocal(a) c = Relu(x) d = Relu(c) y = Sub(d, b) }"
    assert_becomes_everywhere(ReduceStrength(), text, "Exp", "Reciprocal", "Relu", "Sub", in_function=True)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(models(families=("unary", "binary", "neutral", "constants", "identity", "unsqueeze", "squeeze", "if")))
def test_property(model: ir.Model) -> None:
    check_pass(ReduceStrength(), model)
