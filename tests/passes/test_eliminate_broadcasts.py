from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.eliminate_broadcasts import EliminateBroadcasts
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays


def graph(nodes: str, inputs: str = "float[N,4] x, float[1,4] a", outputs: str = "float[N,4] y") -> str:
    return f"g ({inputs}) => ({outputs}) <int64[2] twice = {{2,1}}, int64[1] rest = {{4}}> {{ {nodes} }}"


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Max", "Sum"])
def test_expand(op_type: str) -> None:
    assert_becomes(
        EliminateBroadcasts(),
        graph(f"s = Shape(x) e = Expand(a, s) y = {op_type}(x, e)"),
        graph(f"y = {op_type}(x, a)"),
    )
    assert_becomes(
        EliminateBroadcasts(),
        graph(f"s = Shape(x) e = Expand(a, s) y = {op_type}(e, x)"),
        graph(f"y = {op_type}(a, x)"),
    )


def test_an_operand_of_lower_rank() -> None:
    inputs = "float[N,4] x, float[4] a"
    assert_becomes(
        EliminateBroadcasts(),
        graph("s = Shape(x) e = Expand(a, s) y = Sub(x, e)", inputs),
        graph("y = Sub(x, a)", inputs),
    )


def test_where_and_a_filled_tensor() -> None:
    assert_becomes(
        EliminateBroadcasts(),
        """g (float[N,4] x, bool[N,4] c) => (float[N,4] y) {
            s = Shape(x) z = ConstantOfShape<value = float[1] {7}>(s) y = Where(c, x, z) }""",
        "g (float[N,4] x, bool[N,4] c) => (float[N,4] y) <float z = {7}> { y = Where(c, x, z) }",
    )
    assert_becomes(
        EliminateBroadcasts(),
        "g (float[N,4] x) => (float[N,4] y) { s = Shape(x) z = ConstantOfShape(s) y = Max(x, z) }",
        "g (float[N,4] x) => (float[N,4] y) <float z = {0}> { y = Max(x, z) }",
    )


def test_a_tile_of_axes_of_size_one() -> None:
    inputs, outputs = "float[2,4] x, float[1,4] a", "float[2,4] y"
    assert_becomes(
        EliminateBroadcasts(),
        graph("t = Tile(a, twice) y = Add(x, t)", inputs, outputs),
        graph("y = Add(x, a)", inputs, outputs),
    )


def test_one_of_two_has_to_be_stretched() -> None:
    """Each can be, but not both."""
    text = graph("s = Shape(x) e = Expand(a, s) f = Expand(a, s) y = Sub(e, f)")
    assert_becomes(EliminateBroadcasts(), text, graph("s = Shape(x) f = Expand(a, s) y = Sub(a, f)"))


def test_the_axes_in_front_of_matrices() -> None:
    inputs = "float[B,N,4] x, float[1,4,3] a"
    wide = "b = Shape<end = 1>(x) r = Shape<start = 1>(a) s = Concat<axis = 0>(b, r) e = Expand(a, s)"
    assert_becomes(
        EliminateBroadcasts(),
        graph(f"{wide} y = MatMul(x, e)", inputs, "float[B,N,3] y"),
        graph("y = MatMul(x, a)", inputs, "float[B,N,3] y"),
    )


def test_an_expand_of_an_expand() -> None:
    assert_becomes(
        EliminateBroadcasts(),
        graph("r = Shape<start = 1>(x) e = Expand(a, r) s = Shape(x) f = Expand(e, s) y = Relu(f)"),
        graph("s = Shape(x) f = Expand(a, s) y = Relu(f)"),
    )


def test_rows_that_are_all_the_same() -> None:
    text = """g (float[N,S,2] x, int64[1] i) => (float[N,S,2] y) <float[3,2] w = {1,2,3,4,5,6}> { NODES }"""
    inputs = "b = Mul(i, i) c = Sub(b, b) "
    before = inputs + "s = Shape<end = 2>(x) e = Expand(c, s) r = Gather(w, e) y = Add(x, r)"
    after = inputs + "r = Gather(w, c) y = Add(x, r)"
    assert_becomes(EliminateBroadcasts(), text.replace("NODES", before), text.replace("NODES", after))
    for other in ("y = Relu(r)", "z = Neg(r) q = Mul(z, x) y = Add(q, r)"):
        assert_stays(EliminateBroadcasts(), text.replace("NODES", before.replace("y = Add(x, r)", other)))


def test_everywhere() -> None:
    text = (
        "g (float[N,4] x) => (float[N,4] y) <float[1,4] a = {1,2,3,4}> { s = Shape(x) e = Expand(a, s) y = Add(x, e) }"
    )
    assert_becomes_everywhere(EliminateBroadcasts(), text, "Add")


def test_the_stretching_stays_for_others() -> None:
    assert_becomes(
        EliminateBroadcasts(),
        graph("s = Shape(x) e = Expand(a, s) y = Add(x, e)", outputs="float[N,4] y, float[N,4] e"),
        graph("s = Shape(x) e = Expand(a, s) y = Add(x, a)", outputs="float[N,4] y, float[N,4] e"),
    )


MATRIX = "float[2,N,3] y"


@pytest.mark.parametrize(
    "text",
    [
        graph("s = Shape(x) e = Expand(a, s) y = Relu(e)"),
        graph("n = Shape<end = 1>(x) s = Concat<axis = 0>(n, rest) e = Expand(a, s) y = Sub(e, a)"),  # gives the size
        graph("s = Shape(x) e = Expand(a, s) y = Concat<axis = 0>(x, e)", outputs="float[M,4] y"),
        "g (float[4,4] x, float[2,4] a) => (float[4,4] y) <int64[2] k = {2,1}> { t = Tile(a, k) y = Sub(t, x) }",
        graph(
            "s = Shape(z) e = Expand(a, s) y = Add(x, e)", "float[N,4] x, float[1,4] a, float[M,4] z", "float[K,4] y"
        ),
        # The stretched axis is one of the matrix.
        graph(
            "s = Shape(b) e = Expand(a, s) y = MatMul(x, e)", "float[2,N,4] x, float[2,1,3] a, float[2,4,3] b", MATRIX
        ),
    ],
)
def test_stays(text: str) -> None:
    assert_stays(EliminateBroadcasts(), text)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("expand", "binary", "neutral", "unsqueeze", "unary", "matmul")))
def test_property(model: ir.Model) -> None:
    check_pass(EliminateBroadcasts(), model)
