from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.cancel_transposes import CancelTransposes
from passes.remove_unused import RemoveUnused
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read

TO = "Transpose<perm = [0,2,3,1]>"
BACK = "Transpose<perm = [0,3,1,2]>"


def graph(nodes: str, inputs: str = "float[N,2,3,4] x", outputs: str = "float[N,2,3,4] y") -> str:
    return f"""g ({inputs}) => ({outputs}) <float half = {{0.5}}, float[2] channels = {{1,2}},
        int64[2] hw = {{1,2}}, int64[2] hw2 = {{2,3}}, float[1,1,1,1] deep = {{3}}> {{ {nodes} }}"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"a = {TO}(x) b = Relu(a) y = {BACK}(b)", "y = Relu(x)"),
        (f"a = {TO}(x) b = Relu(a) c = Exp(b) d = Mul(a, c) y = {BACK}(d)", "b = Relu(x) c = Exp(b) y = Mul(x,c)"),
        (f"a = {TO}(x) b = Mul(a, half) y = {BACK}(b)", "y = Mul(x, half)"),
        (f"a = {TO}(x) b = Mul(deep, a) y = {BACK}(b)", "y = Mul(deep, x)"),
        (f"a = {TO}(x) b = Clip(a, half) y = {BACK}(b)", "y = Clip(x, half)"),
        (f"a = {TO}(x) b = ReduceMean(a, hw) c = Sub(a, b) y = {BACK}(c)", "b = ReduceMean(x, hw2) y = Sub(x, b)"),
        (f"a = {TO}(x) b = Softmax(a) y = {BACK}(b)", "y = Softmax<axis = 1>(x)"),
        (f"a = {TO}(x) b=Neg(a) c = {BACK}(b) d=Exp(a) e = {BACK}(d) y = Sub(c,e)", "b = Neg(x) c = Exp(x) y=Sub(b,c)"),
    ],
)  # fmt: skip
def test_regions(before: str, after: str) -> None:
    assert_becomes(CancelTransposes(), graph(before), graph(after))


def test_one_more_is_needed_and_two_fall_away() -> None:
    outputs = "float[N,2,3,4] y, float[N,24] z"
    model = read(graph(f"a = {TO}(x) b = Relu(a) y = {BACK}(b) z = Flatten(b)", outputs=outputs))
    result = check_pass(CancelTransposes(), model)
    RemoveUnused()(result)
    assert [node.op_type for node in result.graph] == ["Relu", "Transpose", "Flatten"]


def test_constants_are_turned() -> None:
    assert_becomes(
        CancelTransposes(),
        graph(f"a = {TO}(x) b = Mul(a, channels) y = {BACK}(b)"),
        graph("y = Mul(x, k)").replace("float half = {0.5}", "float[1,2,1,1] k = {1,2}"),
    )


def test_concat_of_two() -> None:
    inputs, outputs = "float[N,2,3,4] x, float[N,2,3,4] z", "float[N,4,3,4] y"
    assert_becomes(
        CancelTransposes(),
        graph(f"a = {TO}(x) b = {TO}(z) c = Concat<axis = 3>(a, b) y = {BACK}(c)", inputs, outputs),
        graph("y = Concat<axis = 1>(x, z)", inputs, outputs),
    )


def test_an_operand_in_the_old_order_is_turned() -> None:
    inputs = "float[N,2,3,4] x, float[N,3,4,2] z"
    assert_becomes(
        CancelTransposes(),
        graph(f"a = {TO}(x) b = Add(a, z) y = {BACK}(b)", inputs),
        graph(f"t = {BACK}(z) y = Add(x, t)", inputs),
    )


def test_a_result_in_the_old_order_is_turned_back() -> None:
    outputs = "float[N,2,3,4] y, float[N,2,3,4] w, float[N,3,4,2] b"
    result = check_pass(
        CancelTransposes(),
        read(graph(f"a = {TO}(x) b = Relu(a) y = {BACK}(b) c = Neg(b) w = {BACK}(c)", outputs=outputs)),
    )
    RemoveUnused()(result)
    assert sorted(node.op_type for node in result.graph) == ["Neg", "Relu", "Transpose"]


def test_everywhere() -> None:
    text = """g (float[N,3,3] x) => (float[N,3,3] y) {
        a = Transpose<perm = [0,2,1]>(x) b = Relu(a) y = Transpose<perm = [0,2,1]>(b) }"""
    assert_becomes_everywhere(CancelTransposes(), text, "Relu")


@pytest.mark.parametrize(
    "text",
    [
        graph(f"a = {TO}(x) y = Relu(a)", outputs="float[N,3,4,2] y"),
        graph(f"a = Relu(x) y = {TO}(a)", outputs="float[N,3,4,2] y"),
        graph(f"a = {TO}(x) b = Relu(a) y = {TO}(b)", outputs="float[N,4,2,3] y"),  # does not undo it
        graph(f"a = {TO}(x) b = Flatten(a) c = Relu(b) y = Transpose<perm = [1,0]>(c)", outputs="float[24,N] y"),
        graph(f"a = {TO}(x) b = CumSum(a, one) y = {BACK}(b)").replace("float half = {0.5}", "int64 one = {1}"),
        graph(f"a = {TO}(x) b = Mul(a, z) y = {BACK}(b)", "float[N,2,3,4] x, float[2] z"),  # fewer axes, not constant
        graph(f"a = {TO}(x) b = ReduceMax<keepdims = 0>(a, hw) y = Transpose<perm = [1,0]>(b)", outputs="float[2,N] y"),
        # One falls away, one would be added.
        graph(f"a = {TO}(x) b = Add(a, z) y = Flatten(b)", "float[N,2,3,4] x, float[N,3,4,2] z", "float[N,24] y"),
        graph(f"a = {TO}(x) b = Relu(a) y = {BACK}(b)", outputs="float[N,2,3,4] y, float[N,3,4,2] b, float[N,3,4,2] a"),
    ],
)  # fmt: skip
def test_stays(text: str) -> None:
    assert_stays(CancelTransposes(), text)


LAYER = """g (float[S,B,2] x) => (float[S,B,3] y) <float[2,3] w = {1,2,3,4,5,6}, float[3] b = {1,2,3},
    float[2] scale = {1,2}> { a = Transpose<perm = [1,0,2]>(x) n = LayerNormalization(a, scale) p = MatMul(n, w)
    c = Add(p, b) y = Transpose<perm = [1,0,2]>(c) }"""


def test_over_a_linear_layer() -> None:
    model = check_pass(CancelTransposes(), read(LAYER))
    assert [node.op_type for node in model.graph] == ["LayerNormalization", "MatMul", "Add"]


@pytest.mark.parametrize(
    "text",
    [
        LAYER.replace("<perm = [1,0,2]>(x)", "<perm = [0,2,1]>(x)").replace("float[S,B,2] x", "float[B,2,S] x")
        .replace("<perm = [1,0,2]>(c)", "<perm = [0,2,1]>(c)").replace("float[S,B,3] y", "float[B,3,S] y"),
        LAYER.replace("(a, scale)", "<axis = 1>(a, scale)").replace("float[2] scale = {1,2}", "float[1] scale = {1}"),
        LAYER.replace("float[S,B,2] x)", "float[S,B,2] x, float[2,3] w)").replace("float[2,3] w = {1,2,3,4,5,6}, ", ""),
    ],
)  # fmt: skip
def test_layers_that_do_not_only_work_along_the_last_axis(text: str) -> None:
    assert_stays(CancelTransposes(), text)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(models(families=("transpose", "transpose", "unary", "binary", "neutral", "constants"), max_steps=12))
def test_property(model: ir.Model) -> None:
    check_pass(CancelTransposes(), model)
