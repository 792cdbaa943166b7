from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.flatten_rows import FlattenRows
from passes.remove_unused import RemoveUnused
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read

WEIGHTS = "float[4,4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, float[4] b = {1,2,3,4}"
TWO_LAYERS = """m = MatMul(x, w) a = Add(m, b) r = Relu(a) n = MatMul(r, w) c = Add(b, n)
    o = MatMul(c, w) y = Add(o, b)"""
FLAT = """f = Reshape(x, flat) m = MatMul(f, w) a = Add(m, b) r = Relu(a) n = MatMul(r, w) c = Add(b, n)
    o = MatMul(c, w) d = Add(o, b) y = Reshape(d, shape)"""


def graph(nodes: str, inputs: str = "float[B,3,4] x", outputs: str = "float[B,3,4] y", more: str = "") -> str:
    shapes = "int64[2] flat = {-1,4}, int64[3] shape = {-1,3,4}"
    return f"g ({inputs}) => ({outputs}) <{WEIGHTS}, {shapes} {more}> {{ {nodes} }}"


def left(text: str) -> list[str]:
    """What is left of a model, of which the pass keeps its contract."""
    model = check_pass(FlattenRows(), read(text))
    RemoveUnused()(model)
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "shape"),
    [
        ("float[B,3,4] x", "float[B,3,4] y", "{-1,3,4}"),
        ("float[2,S,4] x", "float[2,S,4] y", "{2,-1,4}"),
        ("float[2,3,4] x", "float[2,3,4] y", "{2,3,4}"),
    ],
)
def test_layers_between_two_reshapes(inputs: str, outputs: str, shape: str) -> None:
    expected = graph(FLAT, inputs, outputs).replace("{-1,3,4}", shape)
    assert_becomes(FlattenRows(), graph(TWO_LAYERS, inputs, outputs), expected)


def test_in_every_body() -> None:
    assert_becomes_everywhere(FlattenRows(), graph(TWO_LAYERS), *left(graph(TWO_LAYERS)))


def test_reshapes_inside_fall_away() -> None:
    nodes = """m = MatMul(x, w) a = Add(m, b) f = Reshape(a, flat) n = MatMul(f, w) c = Add(n, b) u = Reshape(c, shape)
        o = MatMul(u, w) y = Add(o, b)"""
    assert left(graph(nodes)) == ["Reshape", *["MatMul", "Add"] * 3, "Reshape"]


def test_a_transpose_that_moves_an_axis_of_one_is_a_reshape() -> None:
    turned = "m = MatMul(x, w) a = Add(m, b) t = Transpose<perm = [1,0,2]>(a) n = MatMul(t, w) y = Add(n, b)"
    one = graph(turned, "float[1,S,4] x", "float[S,1,4] y")
    assert left(one) == ["Reshape", "MatMul", "Add", "MatMul", "Add", "Reshape"]
    assert_stays(FlattenRows(), graph(turned, "float[2,S,4] x", "float[S,2,4] y"))


def test_a_skip_connection_and_a_normalization() -> None:
    nodes = """n = LayerNormalization(x, b, b) m = MatMul(n, w) a = Add(m, b) r = Gelu(a) o = MatMul(r, w) c = Add(o, b)
        s = Add(x, c) q = MatMul(s, w) y = Add(q, b)"""
    kinds = left(graph(nodes))
    assert kinds.count("Reshape") == 2
    assert kinds[1] == "LayerNormalization"


def test_constants_are_reshaped_when_the_pass_runs() -> None:
    more = ", float[1,1,4] one_row = {1,2,3,4}, float[1,3,4] rows = {1,2,3,4,5,6,7,8,9,1,2,3}"
    nodes = """m = MatMul(x, w) a = Add(m, one_row) s = Mul(a, rows) n = MatMul(s, w) c = Add(n, b) o = MatMul(c, w)
        y = Add(o, b)"""
    kinds = left(graph(nodes, "float[1,3,4] x", "float[1,3,4] y", more))
    assert kinds == ["Reshape", "MatMul", "Add", "Mul", "MatMul", "Add", "MatMul", "Add", "Reshape"]


def test_what_costs_more_than_it_is_worth_is_left_out() -> None:
    """Two reshapes before the first Add would be one more than one behind it."""
    kinds = left(graph("e = Add(x, z) " + TWO_LAYERS.replace("(x,", "(e,"), "float[B,3,4] x, float[B,3,4] z"))
    assert kinds[:2] == ["Add", "Reshape"]


def test_a_result_in_the_middle_is_brought_back() -> None:
    nodes = TWO_LAYERS.replace("y = ", "p = ") + " i = MatMul(p, w) y = Add(i, b)"
    kinds = left(graph(nodes, outputs="float[B,3,4] y, float[B,3,4] r"))
    assert kinds.count("Reshape") == 3


@pytest.mark.parametrize(
    "text",
    [
        graph("m = MatMul(x, w) a = Add(m, b) r = Relu(a) n = MatMul(r, w) y = Add(n, b)"),  # two for two
        graph(TWO_LAYERS, "float[B,S,4] x", "float[B,S,4] y"),  # two sizes are unknown
        graph(TWO_LAYERS, "float[2,0,4] x", "float[2,0,4] y"),
        graph(TWO_LAYERS, "float[3,4] x", "float[3,4] y"),  # matrices already
        graph(TWO_LAYERS.replace("Add", "Mul")),  # nothing takes a factor
        graph(TWO_LAYERS.replace("Relu(a)", "Softmax<axis = 1>(a)")),
        graph(TWO_LAYERS.replace("Relu(a)", "LayerNormalization<axis = 1>(a, k)"), more=", float[3,4] k = "
              "{1,2,3,4,1,2,3,4,1,2,3,4}"),
        graph(TWO_LAYERS.replace("Relu(a)", "LayerNormalization<axis = 1>(a, b)")),
        graph(TWO_LAYERS.replace("Relu(a)", "MatMul(a, t)"), "float[2,3,4] x", "float[2,3,4] y", ", float[2,4,4] t = {"
              + ",".join("12345678" * 4) + "}"),
        graph(TWO_LAYERS.replace("Relu(a)", "Transpose<perm = [0,2,1]>(t)").replace("r =", "t = Reshape(a, s2) r ="),
              more=", int64[3] s2 = {-1,4,3}"),
        graph(TWO_LAYERS, f"float[B,3,4] x, float[4,4] w{'2'}").replace("MatMul(r, w)", "MatMul(r, w2)"),
        graph(TWO_LAYERS.replace("Relu(a)", "Add(a, z)"), "float[B,3,4] x, float[3,1] z"),  # not the same for each row
    ],
)  # fmt: skip
def test_stays(text: str) -> None:
    assert_stays(FlattenRows(), text)


def test_stays_before_softmax_worked_along_one_axis() -> None:
    """Without an axis it worked along all axes from the second on."""
    text = graph(TWO_LAYERS.replace("Relu(a)", "Softmax(a)"))
    assert_stays(FlattenRows(), text, opset=12)
    assert left(text)[0] == "Reshape"


@settings(max_examples=60, derandomize=True, deadline=None)
@given(models(families=("matmul", "matmul", "gemm", "layer", "binary", "unary", "reshape", "transpose", "unsqueeze")))
def test_property(model: ir.Model) -> None:
    check_pass(FlattenRows(), model)
