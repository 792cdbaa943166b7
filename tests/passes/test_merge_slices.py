from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.merge_slices import MergeSlices
from passes.remove_unused import RemoveUnused
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read


def graph(nodes: str, inputs: str = "float[N,6] x", outputs: str = "float[N,6] y") -> str:
    numbers = ", ".join(f"int64[1] k{n} = {{{n}}}" for n in range(8))
    return f"""g ({inputs}) => ({outputs}) <{numbers}, int64[1] m1 = {{-1}}, int64[1] m2 = {{-2}},
        int64 five = {{5}}, int64[2] axes = {{0,1}}, int64[1] end = {{9223372036854775807}},
        int64[2] ks = {{0,1}}, int64[2] ke = {{1,3}}, int64[2] one = {{1,1}},
        int64[2] s24 = {{2,4}}, int64[2] s42 = {{4,2}}, int64[3] s222 = {{2,2,2}}> {{ {nodes} }}"""


def test_a_slice_of_a_slice() -> None:
    assert_becomes(
        MergeSlices(),
        graph("a = Slice(x, k0, k1, k0) y = Slice(a, k1, k3, k1)", "float[N,6] x", "float[M,2] y"),
        graph("y = Slice(x, ks, ke, axes, one)", "float[N,6] x", "float[M,2] y"),
    )


@pytest.mark.parametrize("last", ["Slice(x, k2, end, k1)", "Slice(x, k2, k6, m1, k1)"])
def test_consecutive_parts(last: str) -> None:
    model = read(graph(f"b = {last} a = Slice(x, k0, k2, k1) c = Neg(b) y = Concat<axis = 1>(a, c)"))
    result = check_pass(MergeSlices(), model)
    RemoveUnused()(result)
    assert [node.op_type for node in result.graph] == ["Split", "Neg", "Concat"]
    assert result.graph[0].attributes["axis"].as_int() == 1


def test_a_slice_of_a_part() -> None:
    inputs, outputs = "float[N,2] a, float[N,4] b", "float[N,2] y"
    text = "c = Concat<axis = 1>(a, b) d = Slice(c, {}, {}, k1) y = Relu(d)"
    assert_becomes(
        MergeSlices(), graph(text.format("k0", "k2"), inputs, outputs), graph("y = Relu(a)", inputs, outputs)
    )
    assert_becomes(
        MergeSlices(),
        graph(text.format("m2", "end"), inputs, outputs),
        graph("d = Slice(b, k2, k4, k1) y = Relu(d)", inputs, outputs),
    )


def test_a_gather_of_a_part() -> None:
    inputs, outputs = "float[N,2] a, float[N,4] b", "float[N] y"
    assert_becomes(
        MergeSlices(),
        graph("c = Concat<axis = 1>(a, b) y = Gather<axis = 1>(c, j)".replace("j", "five"), inputs, outputs),
        graph("y = Gather<axis = 1>(b, three)", inputs, outputs).replace("int64 five = {5}", "int64 three = {3}"),
    )


def test_a_split_into_the_parts() -> None:
    inputs, outputs = "float[N,2] a, float[N,4] b", "float[N,2] y, float[N,4] z"
    assert_becomes(
        MergeSlices(),
        graph("c = Concat<axis = 1>(a, b) d, e = Split<axis = -1>(c, s24) y = Relu(d) z = Neg(e)", inputs, outputs),
        graph("y = Relu(a) z = Neg(b)", inputs, outputs),
    )


def test_all_parts_of_a_split() -> None:
    text = "a, b = Split<axis = -1>(x, s24) c = Concat<axis = 1>(a, b) y = Relu(c)"
    assert_becomes(MergeSlices(), graph(text), graph("y = Relu(x)"))


def test_everywhere() -> None:
    text = """g (float[N,6] x) => (float[N,6] y) <int64[2] s24 = {2,4}> {
        a, b = Split<axis = 1>(x, s24) c = Concat<axis = 1>(a, b) d = Relu(c) y = Neg(d) }"""
    assert_becomes_everywhere(MergeSlices(), text, "Relu", "Neg")


PAIR = "float[N,2] a, float[N,4] b"


@pytest.mark.parametrize(
    "text",
    [
        graph("a = Slice(x, k0, k4, k1) b = Slice(a, k1, k3, k1) y = Concat<axis = 1>(b, a)"),  # used elsewhere
        graph("a = Slice(x, k0, k4, k1) y = Slice(a, k1, k3, k1)", outputs="float[N,2] y"),  # the same axis
        graph("a = Slice(x, k0, i, k0) y = Slice(a, k1, k3, k1)", "float[3,6] x, int64[1] i", "float[M,2] y"),
        graph(
            "a = Slice(x, k0, k2, k1) b = Slice(x, k3, k6, k1) y = Concat<axis = 1>(a, b)", outputs="float[N,5] y"
        ),  # gap
        graph("a = Slice(x, k0, k3, k1) b = Slice(x, k2, k6, k1) y = Concat<axis = 1>(b, a)", outputs="float[N,7] y"),
        graph("a = Slice(x, k0, k6, k1, k2) b = Slice(x, k3, k6, k1) y = Add(a, b)", outputs="float[N,3] y"),  # steps
        graph("a = Slice(x, k0, k2, k0) b = Slice(x, k2, end, k0) y = Concat<axis = 0>(b, a)"),  # size not known
        graph("c = Concat<axis = 1>(a, b) y = Slice(c, k1, k3, k1)", PAIR, "float[N,2] y"),  # of both parts
        graph("c = Concat<axis = 1>(a, b) y = Slice(c, k0, k1, k0)", PAIR, "float[M,6] y"),  # along another axis
        graph("c = Concat<axis = 1>(a, b) y = Gather<axis = 0>(c, five)", "float[7,2] a, float[7,4] b", "float[6] y"),
        graph(
            "c = Concat<axis = 1>(a, b) d, e = Split<axis = 1>(c, s42) y = Relu(d)", PAIR, "float[N,4] y"
        ),  # other sizes
        graph("a, b = Split<axis = 1>(x, s24) y = Concat<axis = 1>(b, a)"),  # another order
        graph("a, b, c = Split<axis = 1>(x, s222) y = Concat<axis = 1>(a, b)", outputs="float[N,4] y"),  # not all
        graph("a, b = Split<axis = 1>(x, s24) y = Concat<axis = 0>(a, a)", outputs="float[M,2] y"),
    ],
)
def test_stays(text: str) -> None:
    assert_stays(MergeSlices(), text)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("concat-split", "identity", "unary", "constants")))
def test_property(model: ir.Model) -> None:
    check_pass(MergeSlices(), model)
