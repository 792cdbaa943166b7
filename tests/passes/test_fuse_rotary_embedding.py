"""Rotary position embeddings as they are written by hand and by exporters, before and after."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir.query import int_attribute
from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass, models
from passes.fuse_rotary_embedding import FuseRotaryEmbedding
from passes.remove_unused import RemoveUnused
from tests.passes.transform import assert_becomes, assert_stays, read

NUMBERS = """int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}, int64[1] eight = {8},
    int64[1] last = {-1}, int64[1] end = {9223372036854775807}, int64 even = {0}, int64 odd = {1},
    int64[2] halves = {4,4}, int64[5] pairs = {0,0,0,4,2}, int64[4] heads = {0,0,0,8}, float[2,4] table =
    {1,2,1,2,3,4,3,4}"""
X, ANGLES = "float[B,3,S,8] x", "float[S,4] f"
TWICE = "c2 = Concat<axis = -1>(f, f) c = Cos(c2) s = Sin(c2)"
NEIGHBOURS = """u = Unsqueeze(f, last) c2 = Concat<axis = -1>(u, u) shape = Shape(f) rows = Gather(shape, zero)
    flat = Concat<axis = 0>(rows, eight) c3 = Reshape(c2, flat) c = Cos(c3) s = Sin(c3)"""
HALVES = "x1 = Slice(x, zero, four, last) x2 = Slice(x, four, end, last)"
SPLIT = "x1, x2 = Split<axis = -1>(x, halves)"
TURNED = "n = Neg(x2) t = Concat<axis = -1>(n, x1) a = Mul(x, c) b = Mul(t, s) y = Add(a, b)"
STRIDES = "x1 = Slice(x, zero, end, last, two) x2 = Slice(x, one, end, last, two)"
PAIRS = "p = Reshape(x, pairs) x1 = Gather<axis = -1>(p, even) x2 = Gather<axis = -1>(p, odd)"
TURNED_NEIGHBOURS = """n = Neg(x2) n1 = Unsqueeze(n, last) x3 = Unsqueeze(x1, last) t1 = Concat<axis = -1>(n1, x3)
    t = Reshape(t1, heads) a = Mul(x, c) b = Mul(t, s) y = Add(b, a)"""
ONCE = "c = Cos(f) s = Sin(f)"
SUMS = """a1 = Mul(x1, c) a2 = Mul(s, x2) r = Sub(a1, a2) b1 = Mul(x1, s) b2 = Mul(c, x2) i = Add(b2, b1)"""
JOINED = f"{SUMS} y = Concat<axis = 3>(r, i)"
JOINED_NEIGHBOURS = f"""{SUMS} r1 = Unsqueeze(r, last) i1 = Unsqueeze(i, last) j = Concat<axis = -1>(r1, i1)
    y = Reshape(j, heads)"""


def graph(*parts: str, x: str = X, angles: str = ANGLES, y: str = "float[B,3,S,8] y") -> str:
    return f"g ({x}, {angles}) => ({y}) <{NUMBERS}> {{ {' '.join(parts)} }}"


def fused(text: str) -> ir.Model:
    """The model after the pass, which has kept its contract; without dead nodes."""
    result = check_pass(FuseRotaryEmbedding(), read(text))
    RemoveUnused()(result)
    return result


def the_rotation(model: ir.Model) -> ir.Node:
    (node,) = [node for node in model.graph if node.op_type == "RotaryEmbedding"]
    assert not any(node.op_type in ("Neg", "Sub", "Split") for node in model.graph)
    return node


def reason(text: str) -> str:
    assert_stays(FuseRotaryEmbedding(), text)
    (miss,) = PassManager([FuseRotaryEmbedding()]).run(read(text)).near_misses
    return miss.reason


def test_the_plainest() -> None:
    assert_becomes(
        FuseRotaryEmbedding(),
        graph(TWICE, HALVES, TURNED, x="float[1,3,S,8] x", y="float[1,3,S,8] y"),
        """g (float[1,3,S,8] x, float[S,4] f) => (float[1,3,S,8] y)
            <int64[1] i = {0}, int64[1] j = {0}> {
            c = Cos(f) c1 = Unsqueeze(c, i) s = Sin(f) s1 = Unsqueeze(s, j) y = RotaryEmbedding(x, c1, s1) }""",
    )


@pytest.mark.parametrize(
    ("parts", "interleaved"),
    [
        ((TWICE, HALVES, TURNED), 0),
        ((TWICE, SPLIT, TURNED), 0),
        ((ONCE, HALVES, JOINED), 0),
        ((ONCE, SPLIT, JOINED), 0),
        ((NEIGHBOURS, STRIDES, TURNED_NEIGHBOURS), 1),
        ((NEIGHBOURS, PAIRS, TURNED_NEIGHBOURS), 1),
        ((ONCE, STRIDES, JOINED_NEIGHBOURS), 1),
        ((ONCE, PAIRS, JOINED_NEIGHBOURS), 1),
    ],
)
def test_the_ways_to_write_it(parts: tuple[str, ...], interleaved: int) -> None:
    node = the_rotation(fused(graph(*parts)))
    assert int_attribute(node, "interleaved", 0) == interleaved


def test_angles_from_a_table() -> None:
    text = graph(
        "g1 = Gather(table, ids) g2 = Unsqueeze(g1, one) c = Cos(g2) s = Sin(g2)",
        "x1 = Slice(x, zero, two, last) x2 = Slice(x, two, end, last)",
        TURNED,
        x="float[B,3,S,4] x",
        angles="bool[B,S] mask",
        y="float[B,3,S,4] y",
    ).replace("g1 =", "ids = Cast<to = 7>(mask) g1 =")
    model = fused(text)
    assert [
        tuple(v.const_value.shape) for v in model.graph.initializers.values() if v.name == "table_1" and v.const_value
    ]
    the_rotation(model)


@pytest.mark.parametrize(
    ("x", "angles", "heads"),
    [
        ("B,S,3,8", "S,1,4", 3),
        ("B,S,3,8", "B,S,1,4", 3),
        ("B,3,S,8", "B,1,S,4", 0),
        ("2,3,S,8", "1,S,4", 0),
        ("B,S,8", "S,4", 1),
        ("B,S,8", "B,S,4", 1),
    ],
)
def test_axes(x: str, angles: str, heads: int) -> None:
    text = graph(TWICE, HALVES, TURNED, x=f"float[{x}] x", angles=f"float[{angles}] f", y=f"float[{x}] y")
    assert int_attribute(the_rotation(fused(text)), "num_heads", 0) == heads


@pytest.mark.parametrize("x", ["B,3,S,8", "B,S,3,8"])
def test_a_part_of_each_head(x: str) -> None:
    angles = "float[S,2] f" if x.startswith("B,3") else "float[S,1,2] f"
    text = graph(
        TWICE,
        "xr = Slice(x, zero, four, last) rest = Slice(x, four, end, last)",
        "x1 = Slice(xr, zero, two, last) x2 = Slice(xr, two, end, last)",
        TURNED.replace("Mul(x, c)", "Mul(xr, c)").replace("y = Add", "z = Add"),
        "y = Concat<axis = -1>(z, rest)",
        x=f"float[{x}] x",
        angles=angles,
        y=f"float[{x}] y",
    )
    model = fused(text)
    assert int_attribute(the_rotation(model), "rotary_embedding_dim", 0) == 4
    assert not any(node.op_type == "Slice" for node in model.graph)


def test_queries_and_keys_share_the_angles() -> None:
    text = graph(
        TWICE,
        HALVES,
        TURNED,
        "k1 = Slice(k, zero, four, last) k2 = Slice(k, four, end, last) kn = Neg(k2) kt = Concat<axis = -1>(kn, k1)",
        "ka = Mul(k, c) kb = Mul(kt, s) z = Add(ka, kb)",
        x="float[B,3,S,8] x, float[B,2,S,8] k",
        y="float[B,3,S,8] y, float[B,2,S,8] z",
    )
    model = fused(text)
    assert sorted(node.op_type for node in model.graph if node.op_type in ("Cos", "Sin", "Expand")) == [
        "Cos",
        "Expand",
        "Expand",
        "Sin",
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (graph("c = Cos(f) s = Sin(f)", HALVES, TURNED, angles="float[S,8] f"), "not known to be the same for both"),
        (graph(NEIGHBOURS, HALVES, TURNED), "not known to be the same for both elements of a pair"),
        (graph(TWICE, HALVES, TURNED, angles="float[B,3,S,4] f"), "not known to be one for each position"),
        (graph(TWICE, HALVES, TURNED, x="float[A,B,3,S,8] x", y="float[A,B,3,S,8] y"), "three or four axes"),
        (
            graph(ONCE, HALVES, TURNED, angles="float[S,1] f"),
            "do not have 8 elements for each position",
        ),
    ],
)
def test_why_not(text: str, why: str) -> None:
    assert why in reason(text)


def test_an_older_opset_has_no_such_operator() -> None:
    result = PassManager([FuseRotaryEmbedding()]).run(read(graph(TWICE, HALVES, TURNED), opset=21))
    assert [miss.reason for miss in result.near_misses] == ["opset 21 has no RotaryEmbedding, opset 23 has"]


@pytest.mark.parametrize(
    "parts",
    [
        (TWICE, HALVES, TURNED.replace("(n, x1)", "(x1, n)")),
        (TWICE, HALVES, TURNED.replace("Neg(x2)", "Abs(x2)")),
        (TWICE, HALVES.replace("x2 = Slice(x, four", "x2 = Slice(x, zero"), TURNED.replace("x1)", "x1)")),
        (TWICE, HALVES, TURNED.replace("Add(a, b)", "Sub(a, b)")),
        (ONCE, HALVES, JOINED.replace("Mul(c, x2)", "Mul(s, x2)")),
        (ONCE, HALVES, JOINED.replace("(r, i)", "(i, r)")),
    ],
)
def test_what_is_no_rotation(parts: tuple[str, ...]) -> None:
    text = graph(*parts)
    if "x2 = Slice(x, zero" in text:
        text = text.replace("x2 = Slice(x, zero, end", "x2 = Slice(x, zero, four")
    assert_stays(FuseRotaryEmbedding(), text)
    assert PassManager([FuseRotaryEmbedding()]).run(read(text)).near_misses == ()


@settings(max_examples=15, derandomize=True, deadline=None)
@given(models(families=("binary", "concat-split", "unary", "unsqueeze", "squeeze", "repeat")))
def test_property(model: ir.Model) -> None:
    check_pass(FuseRotaryEmbedding(), model)
