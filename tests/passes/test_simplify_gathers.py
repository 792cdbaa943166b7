from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.simplify_gathers import SimplifyGathers
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays

# As a mask of transformers is exported: positions along two axes, stretched to a grid, with one axis more behind.
GRID = """n = Shape<start = 0, end = 1>(x) n0 = Squeeze(n) r = Range(zero, n0, one) p = Reshape(r, rows)
    m = Shape<start = 1, end = 2>(x) m0 = Squeeze(m) c = Range(zero, m0, one) q = Reshape(c, columns)
    b = Max(p, q) s = Shape(b) pe = Expand(p, s) qe = Expand(q, s) pu = Unsqueeze(pe, last) qu = Unsqueeze(qe, last)
    i = Concat<axis = -1>(pu, qu)"""


def graph(nodes: str, inputs: str = "float[N,M] x", outputs: str = "float[N,1,1,M] y") -> str:
    return f"""g ({inputs}) => ({outputs}) <int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}},
        int64[1] last = {{-1}},
        int64[4] rows = {{-1,1,1,1}}, int64[4] columns = {{1,1,1,-1}}, int64[2] axes = {{1,2}},
        int64[3] three = {{0,1,2}}, int64[3] back = {{2,1,0}}, int64[2,1,3,2] points =
        {{0,0,0,1,0,2,1,0,1,1,1,2}}, int64[2,1,3,2] mirrored = {{0,2,0,1,0,0,1,2,1,1,1,0}}, int64[1] middle = {{1}},
        float[1,5] same = {{7,7,7,7,7}}, float[1,5] differ = {{7,7,7,7,8}}, float number = {{7}}> {{ {nodes} }}"""


def test_a_grid_of_positions() -> None:
    assert_becomes(SimplifyGathers(), graph(f"{GRID} y = GatherND(x, i)"), graph("y = Unsqueeze(x, axes)"))


def test_a_constant_grid() -> None:
    inputs, outputs = "float[2,3,K] x", "float[2,1,3,K] y"
    wanted = graph("y = Unsqueeze(x, middle)", inputs, outputs)
    assert_becomes(SimplifyGathers(), graph("y = GatherND(x, points)", inputs, outputs), wanted)


def test_a_grid_that_adds_no_axis() -> None:
    text = (
        """g (float[2,2] x) => (float[2,2] y) <int64[2,2,2] i = {0,0,0,1,1,0,1,1}> { z = Relu(x) y = GatherND(z, i) }"""
    )
    assert_becomes(SimplifyGathers(), text, "g (float[2,2] x) => (float[2,2] y) { y = Relu(x) }")


def test_all_positions_of_an_axis() -> None:
    inputs, outputs = "float[M,3] x", "float[M,3] y"
    wanted = graph("y = Relu(x)", inputs, outputs)
    assert_becomes(SimplifyGathers(), graph("z = Relu(x) y = Gather<axis = 1>(z, three)", inputs, outputs), wanted)
    count = "n = Shape<start = 0, end = 1>(x) n0 = Squeeze(n) r = Range(zero, n0, one)"
    assert_becomes(SimplifyGathers(), graph(f"{count} z = Relu(x) y = Gather(z, r)", inputs, outputs), wanted)


def test_a_constant_that_is_the_same_everywhere() -> None:
    inputs, outputs = "int64[1,M] x", "float[1,M] y"
    assert_becomes(
        SimplifyGathers(),
        graph("z = Sub(x, x) y = GatherElements<axis = 1>(same, z)", inputs, outputs),
        graph("z = Sub(x, x) s = Shape(z) y = Expand(number, s)", inputs, outputs),
    )
    assert_stays(SimplifyGathers(), graph("z = Sub(x, x) y = GatherElements<axis = 1>(differ, z)", inputs, outputs))


def test_everywhere() -> None:
    text = """g (float[2,2] x) => (float[2,2] y) <int64[2,2,2] i = {0,0,0,1,1,0,1,1}> {
        z = Relu(x) a = GatherND(z, i) y = Neg(a) }"""
    assert_becomes_everywhere(SimplifyGathers(), text, "Relu", "Neg")


@pytest.mark.parametrize(
    "text",
    [
        graph("y = GatherND(x, mirrored)", "float[2,3,K] x", "float[2,1,3,K] y"),  # backwards
        graph("y = GatherND(x, points)", "float[2,4,K] x", "float[2,1,3,K] y"),  # not all of them
        graph("y = GatherND(x, points)", "float[3,3,K] x", "float[2,1,3,K] y"),
        graph("y = Gather<axis = 1>(x, back)", "float[M,3] x", "float[M,3] y"),
        graph("y = Gather<axis = 1>(x, three)", "float[M,4] x", "float[M,3] y"),
        graph("n = Size(x) r = Range(one, n, one) y = Gather(x, r)", "float[N] x", "float[M] y"),  # not from the first
        graph("n = Size(x) r = Range(zero, n, two) y = Gather(x, r)", "float[N] x", "float[M] y"),  # every second
        # Rows and columns change places.
        "g (float[2,2] x) => (float[2,2] y) <int64[2,2,2] i = {0,0,1,0,0,1,1,1}> { y = GatherND(x, i) }",
        # The same for each of the batch: it is repeated.
        "g (float[2] x) => (float[2,2] y) <int64[2,2,1] i = {0,1,0,1}> { y = GatherND(x, i) }",
        "g (float[2,2] x) => (float[2,2] y) <int64[2,2,1] i = {0,1,0,1}> { y = GatherND<batch_dims = 1>(x, i) }",
    ],
)
def test_stays(text: str) -> None:
    assert_stays(SimplifyGathers(), text)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(models(families=("unary", "reshape", "expand")))
def test_property(model: ir.Model) -> None:
    check_pass(SimplifyGathers(), model)
