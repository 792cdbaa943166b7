from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from optimizer.errors import BudgetError
from optimizer.ir.costs import model_costs
from optimizer.ir.edit import Editor
from optimizer.ir.near_miss import RewriteResult
from optimizer.ir.provenance import makers
from optimizer.pass_manager import Pass
from optimizer.testing import check_pass, models
from passes.tile_memory import TileMemory, figures_of
from passes.tiling.cut import piece_windows
from passes.tiling.facts import Facts
from passes.tiling.lifetimes import Lifetimes
from passes.tiling.order import put_in_order
from passes.tiling.pieces import Way, steps_of
from passes.tiling.rewrite import apply
from passes.tiling.search import Choice, Plan, Search
from passes.tiling.signature import signature_of
from tests.passes.transform import assert_stays, read


@dataclasses.dataclass(frozen=True)
class CutAll(Pass):
    """Computes a whole graph in pieces, whatever that is good for; leaves it where that cannot be done."""

    axis: int = 2
    count: int = 2
    fused: bool = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        facts = Facts(model, self.fused)
        lifetimes, units = Lifetimes(facts), len(facts.units)
        way = Way(self.axis, self.count)
        done = any(self.name in makers(node) for node in model.graph)
        if done or steps_of(facts, lifetimes.segment(0, units), way) is None:
            return RewriteResult(model, False, ())
        editor = Editor(model)
        apply(editor, facts, Plan((Choice(0, units, way, 0, 0.0),), lifetimes))
        return RewriteResult(model, editor.modified, ())


def graph(nodes: str, inputs: str, output: str, **weights: tuple[int, ...]) -> ir.Model:
    """A model with random weights of these shapes."""
    declared = [f"float[{','.join(map(str, shape))}] {name}" for name, shape in weights.items()]
    model = read(f"g ({', '.join([inputs, *declared])}) => ({output}) {{ {nodes} }}")
    random = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = ir.tensor(random.standard_normal(weights[value.name]).astype(np.float32) / 3)
            model.graph.register_initializer(value)
    return model


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def cut(model: ir.Model, axis: int, count: int = 2, fused: bool = True) -> list[str]:
    """The operators after the model was cut; the pass keeps its contract."""
    return kinds(check_pass(CutAll(axis, count, fused), model))


MLP = "n = LayerNormalization(x, g) m = MatMul(n, w) a = Gelu(m) p = MatMul(a, v) y = Add(p, x)"
MLP_WEIGHTS: dict[str, tuple[int, ...]] = {"g": (8,), "w": (8, 32), "v": (32, 8)}
HEADS = """n = LayerNormalization(x, g) m = MatMul(n, w) q, k, v = Split<axis = -1, num_outputs = 3>(m)
    a = Attention<q_num_heads = 4, kv_num_heads = 4>(q, k, v) p = MatMul(a, o) y = Add(p, x)"""
HEADS_WEIGHTS: dict[str, tuple[int, ...]] = {"g": (16,), "w": (16, 48), "o": (16, 16)}
UNET = """a = Conv<pads = [1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads = [1,1,1,1]>(b, v) s = Relu(c)
    p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(s) d = Conv<pads = [1,1,1,1]>(p, v) e = Relu(d)
    f = Conv<pads = [1,1,1,1]>(e, v) h = Relu(f) r = ConvTranspose<strides = [2,2]>(h, t)
    k = Concat<axis = 1>(r, s) y = Conv(k, u)"""
UNET_WEIGHTS: dict[str, tuple[int, ...]] = {
    "w": (8, 3, 3, 3),
    "v": (8, 8, 3, 3),
    "t": (8, 8, 2, 2),
    "u": (2, 16, 1, 1),
}


def mlp() -> ir.Model:
    return graph(MLP, "float[1,33,8] x", "float[1,33,8] y", **MLP_WEIGHTS)


def heads() -> ir.Model:
    return graph(HEADS, "float[1,9,16] x", "float[1,9,16] y", **HEADS_WEIGHTS)


def unet() -> ir.Model:
    return graph(UNET, "float[1,3,32,32] x", "float[1,2,32,32] y", **UNET_WEIGHTS)


# --- which budget is kept, and how ---


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("build", [mlp, heads, unet])
def test_a_budget_is_kept_in_what_is_predicted_and_by_the_lifetimes(build: Callable[[], ir.Model], fused: bool) -> None:
    model = build()
    search = Search(Facts(model, fused))
    smallest = search.smallest().peak
    assert smallest < 0.6 * search.peak
    for budget in (smallest, (smallest + search.peak) // 2):
        result = check_pass(TileMemory(budget, fused), model)
        assert figures_of(result, fused).peak <= budget
        if not fused:
            assert model_costs(result).peak_activation_bytes <= budget


@pytest.mark.parametrize("build", [mlp, heads, unet])
def test_a_budget_that_cannot_be_met_is_refused_with_one_that_can(build: Callable[[], ir.Model]) -> None:
    with pytest.raises(BudgetError, match="cannot be kept within 100 bytes: the smallest budget is") as caught:
        TileMemory(100)(build())
    assert caught.value.smallest > 100
    assert TileMemory(caught.value.smallest)(build()).modified


def test_a_graph_within_its_budget_stays_as_it_is() -> None:
    model = mlp()
    for budget in (0, figures_of(model, True).peak):
        check = model.clone()
        assert not TileMemory(budget)(check).modified
    assert TileMemory(figures_of(model, True).peak - 1)(model).modified


def test_a_graph_of_symbolic_sizes_stays_as_it_is() -> None:
    nodes = "m = MatMul(x, w) a = Gelu(m) y = MatMul(a, v)"
    weights = "float[2,3] w = {1,2,3,4,5,6}, float[3,1] v = {1,2,3}"
    assert_stays(TileMemory(100), f"g (float[N,2] x) => (float[N,1] y) <{weights}> {{ {nodes} }}")


@pytest.mark.parametrize("fused", [True, False])
def test_a_skip_connection_is_computed_again_where_that_is_the_only_way(fused: bool) -> None:
    """The channels are so few that a kept row costs more than one that is computed again."""
    model = unet()
    result = check_pass(TileMemory(Search(Facts(model, fused)).smallest().peak, fused), model)
    assert model_costs(result).flops > 1.2 * model_costs(model).flops


def test_the_figures_say_how_many_pieces() -> None:
    model = mlp()
    whole = figures_of(model, True)
    assert (whole.pieces, whole.regions) == (1, 0)
    cut_to = figures_of(check_pass(TileMemory(whole.peak // 2), model), True)
    assert (cut_to.pieces, cut_to.regions) == (11, 1)  # of 3 rows each
    assert cut_to.seconds > whole.seconds


def test_half_of_the_work_comes_before_the_other_half() -> None:
    """What only one piece needs is gone before the next one begins."""
    found = kinds(check_pass(CutAll(1, 2), mlp()))
    piece = ["Slice", "LayerNormalization", "MatMul", "Gelu", "MatMul", "Add"]
    assert found == [*piece, *piece, "Concat"]


def test_pieces_of_equal_size_differ_in_nothing_but_where_they_begin() -> None:
    result = check_pass(CutAll(1, 4), graph(MLP, "float[1,32,8] x", "float[1,32,8] y", **MLP_WEIGHTS))
    shapes = {str(node.outputs[0].shape) for node in result.graph if node.op_type == "Gelu"}
    assert shapes == {"[1,8,32]"}


TWO_BRANCHES = """a = MatMul(x, w) b = MatMul(x, v) c = ReduceMax<keepdims = 0>(a) d = ReduceMax<keepdims = 0>(b)
    y = Add(c, d)"""


def test_an_order_that_needs_less_comes_before_pieces() -> None:
    model = graph(TWO_BRANCHES, "float[4,4] x", "float y", w=(4, 64), v=(4, 64))
    two, one = 4 * (1 + 16 + 2 * 256), 4 * (1 + 16 + 256 + 1)  # the result has memory of its own
    assert figures_of(model, True).peak == two
    result = check_pass(TileMemory(one), model)
    assert kinds(result) == ["MatMul", "ReduceMax", "MatMul", "ReduceMax", "Add"]


def test_an_order_that_is_no_better_stays() -> None:
    branches = "b = Relu(x) a = Neg(x) c = MatMul(b, w) y = Add(c, a)"
    model = graph(branches, "float[32,4] x", "float[32,4] y", w=(4, 4))
    facts = Facts(model, False)
    assert put_in_order(Editor(model), facts) is facts


# --- what is cut, and what is not ---

IMAGE = "float[2,4,10,9] x"


@pytest.mark.parametrize(
    ("nodes", "shape", "axes"),
    [
        ("y = Conv<pads = [1,2,2,1], strides = [2,1], dilations = [1,2]>(x, w)", "2,4,6,8", {0, 1, 2, 3}),
        ('y = Conv<auto_pad = "SAME_LOWER", strides = [2,2]>(x, w)', "2,4,5,5", {0, 1, 2, 3}),
        ('y = Conv<auto_pad = "VALID">(x, w)', "2,4,8,7", {0, 1, 2, 3}),
        ("y = Conv<group = 2, pads = [1,1,1,1]>(x, h)", "2,4,10,9", {0, 2, 3}),
        ("y = Conv<group = 4, pads = [1,1,1,1]>(x, d)", "2,4,10,9", {0, 1, 2, 3}),
        ("y = Conv<pads = [4,0,4,0]>(x, w)", "2,4,16,7", {0, 1, 3}),
        ("y = MaxPool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1>(x)", "2,4,5,4", {0, 1, 2, 3}),
        ("y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1]>(x)", "2,4,10,9", {0, 1, 2, 3}),
        (
            "y = AveragePool<kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1>(x)",
            "2,4,10,9",
            {0, 1, 2, 3},
        ),
        (
            "y = AveragePool<kernel_shape = [3,3], strides = [2,2], ceil_mode = 1, count_include_pad = 1>(x)",
            "2,4,5,4",
            {0, 1},
        ),
        ("y, i = MaxPool<kernel_shape = [2,2]>(x) z = Shape(i)", "2,4,9,8", set()),
        ("y = ConvTranspose<strides = [2,2]>(x, t)", "2,3,20,18", {0, 1, 2, 3}),
        (
            "y = ConvTranspose<strides = [2,2], pads = [1,0,1,0], output_padding = [1,0]>(x, t)",
            "2,3,19,18",
            {0, 1, 2, 3},
        ),
        ("y = ConvTranspose<strides = [2,2], output_padding = [1,0]>(x, t)", "2,3,21,18", {0, 1, 3}),
        ('y = ConvTranspose<strides = [2,2], auto_pad = "SAME_UPPER">(x, t)', "2,3,20,18", {0, 1}),
        ("y = GlobalAveragePool(x)", "2,4,1,1", {0, 1}),
        ("y = Softmax<axis = 1>(x)", "2,4,10,9", {0, 2, 3}),
        ("y = LayerNormalization<axis = 2>(x, l)", "2,4,10,9", {0, 1}),
        ("y = InstanceNormalization(x, c, c)", "2,4,10,9", {0}),
        ("y = BatchNormalization(x, c, c, c, e)", "2,4,10,9", {0, 1, 2, 3}),
        ("y = Transpose<perm = [0,2,3,1]>(x)", "2,10,9,4", {0, 1, 2, 3}),
        ("y = Flatten<axis = 2>(x)", "8,90", set()),
        ("y = Concat<axis = 1>(x, x)", "2,8,10,9", {0, 2, 3}),
        ("y = PRelu(x, c1)", "2,4,10,9", {0, 1, 2, 3}),
        ("y = CumSum(x, two)", "2,4,10,9", set()),
        ("y = MatMul(x, m)", "2,4,10,6", {0, 1, 2, 3}),
        ("y = MatMul(x, bm)", "2,4,10,6", {0, 1, 2, 3}),
        ("y = Slice(x, one, five, two)", "2,4,4,9", {0, 1, 3}),
        ("y, z = Split<axis = 1, num_outputs = 2>(x)", "2,2,10,9", {0, 1, 2, 3}),
    ],
)
def test_axes_along_which_an_operator_is_cut(nodes: str, shape: str, axes: set[int]) -> None:
    weights: dict[str, tuple[int, ...]] = {
        "w": (4, 4, 3, 3),
        "h": (4, 2, 3, 3),
        "d": (4, 1, 3, 3),
        "t": (4, 3, 2, 2),
        "l": (10, 9),
        "c": (4,),
        "e": (4,),
        "c1": (4, 1, 1),
        "m": (9, 6),
        "bm": (4, 9, 6),
    }
    constants = (
        "one = Constant<value_ints = [1]>() five = Constant<value_ints = [5]>() two = Constant<value_ints = [2]>()"
    )
    used = {
        name: size
        for name, size in weights.items()
        if name in nodes.replace("(", " ").replace(")", " ").replace(",", " ").split()
    }
    model = graph(f"{constants} {nodes}", IMAGE, f"float[{shape}] y", **used)
    if "e" in used:
        model.graph.initializers["e"].const_value = ir.tensor(np.array([1, 2, 3, 4], np.float32))
    sizes = [int(size) for size in shape.split(",")]
    found = {axis for axis in range(len(sizes)) if sizes[axis] > 1 and "Concat" in _added(model, axis)}
    assert found == {axis for axis in axes if sizes[axis] > 1}


def _added(model: ir.Model, axis: int) -> list[str]:
    before = kinds(model)
    after = cut(model, axis, 2)
    return [] if after == before else after


@pytest.mark.parametrize(
    ("attributes", "is_cut"),
    [
        ('mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"', True),
        ('mode = "nearest"', True),
        ('mode = "nearest", coordinate_transformation_mode = "asymmetric"', False),
        ('mode = "linear"', False),
    ],
)
@pytest.mark.parametrize("factors", ["[1.0,1.0,2.0,3.0]", "[1.0,1.0,1.5,2.0]"])
def test_a_resize_is_cut_where_it_copies_the_nearest(attributes: str, is_cut: bool, factors: str) -> None:
    whole = "1.5" not in factors
    result = "float[1,2,12,15] y" if whole else "float[1,2,9,10] y"
    nodes = f'f = Constant<value_floats = {factors}>() y = Resize<{attributes}>(x, "", f)'
    found = cut(graph(nodes, "float[1,2,6,5] x", result), 2, 5)
    assert ("Concat" in found) == (is_cut and whole)


@pytest.mark.parametrize(
    ("shapes", "shape", "axes"),
    [
        ("[2,12]", "2,12", {0}),
        ("[2,3,2,2]", "2,3,2,2", {0, 1}),
        ("[6,4]", "6,4", {1}),
        ("[0,-1,4]", "2,3,4", {0, 1, 2}),
    ],
)
def test_a_reshape_is_cut_along_an_axis_that_it_keeps(shapes: str, shape: str, axes: set[int]) -> None:
    nodes = f"s = Constant<value_ints = {shapes}>() a = Relu(x) y = Reshape(a, s)"
    model = graph(nodes, "float[2,3,4] x", f"float[{shape}] y")
    assert {axis for axis in range(len(shape.split(","))) if "Concat" in cut(model, axis)} == axes


@pytest.mark.parametrize(
    ("attributes", "mask", "axes"),
    [
        ("", "", {0, 1, 2}),
        ("", "float[2,4,6,6] m", {0, 1, 2}),
        ("", "float[6,6] m", {0, 1, 2}),
        ("is_causal = 1,", "", {0, 2}),
    ],
)
def test_attention_is_cut_along_images_queries_and_heads(attributes: str, mask: str, axes: set[int]) -> None:
    nodes = f"y = Attention<{attributes} q_num_heads = 4, kv_num_heads = 2>(q, k, v{', m' if mask else ''})"
    inputs = ", ".join(["float[2,6,16] q, float[2,6,8] k, float[2,6,4] v", *([mask] if mask else [])])
    model = graph(nodes, inputs, "float[2,6,8] y")
    assert {axis for axis in range(3) if "Concat" in cut(model, axis)} == axes
    assert kinds(check_pass(CutAll(2, 4), model)).count("Attention") == (
        2 if 2 in axes else 1
    )  # pairs share their keys


def test_attention_with_a_cache_is_not_cut() -> None:
    nodes = 'y, a, b = Attention(q, q, q, "", p, p)'
    model = graph(nodes, "float[2,4,6,8] q, float[2,4,3,8] p", "float[2,4,6,8] y")
    assert not {axis for axis in range(3) if "Concat" in cut(model, axis)}


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_is_cut_along_rows_and_columns(transposed: int) -> None:
    model = graph(
        f"y = Gemm<transB = {transposed}, alpha = 0.5, beta = 2.0>(x, w, c)",
        "float[6,4] x",
        "float[6,4] y",
        w=(4, 4),
        c=(6, 4),
    )
    assert cut(model, 0).count("Gemm") == 2
    assert cut(model, 1).count("Gemm") == 2


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Relu(x) y = MatMul(a, w)",
        "a = Relu(x) y = Gemm<transB = 1, alpha = 0.5>(a, w, c)",
    ],
)
def test_a_product_takes_pieces_of_what_it_sums_over(nodes: str) -> None:
    model = graph(nodes, "float[5,6] x", "float[5,6] y", w=(6, 6), c=(6,))
    found = cut(model, -1, 3, fused=False)
    assert found.count("Relu") == 3
    assert "Concat" not in found


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Relu(x) m = MatMul(a, w) y = Add(m, x)",
        "a = Relu(x) m = Gemm<transB = 1>(a, w, c) b = Add(x, m) y = Add(b, c)",
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_what_is_added_to_a_product_is_added_to_its_first_piece(nodes: str, fused: bool) -> None:
    model = graph(nodes, "float[5,6] x", "float[5,6] y", w=(6, 6), c=(6,))
    found = cut(model, -1, 3, fused=fused)
    assert "Concat" not in found
    assert found.count("Add") == kinds(model).count("Add") + 2
    assert found[:4].count("Relu") == 1  # the second piece begins when the first is added


def test_heads_are_summed_up_one_after_the_other_where_a_compiler_fuses() -> None:
    nodes = HEADS.replace("LayerNormalization(x", "LayerNormalization(r").replace("Add(p, x)", "Add(p, r)")
    model = graph(f"r = Relu(x) {nodes}", "float[1,9,16] x", "float[1,9,16] y", **HEADS_WEIGHTS)
    smallest = Search(Facts(model, True)).smallest().peak
    # The normalized rows, the sum, which begins where the input was, the query, key and value of a head, whose rows
    # are written over the query, and the result.
    assert smallest == 4 * 9 * (16 + 16 + 4 * 3 + 16)
    found = check_pass(TileMemory(smallest), model)
    assert kinds(found).count("Attention") == 4
    assert kinds(found).count("LayerNormalization") == 1
    figures = figures_of(found, True)
    assert (figures.pieces, figures.regions, figures.peak) == (4, 1, smallest)


def test_two_summands_are_left_alone_where_a_compiler_fuses() -> None:
    """It adds both to what they are added to in one kernel, and stores one."""
    model = heads()
    assert cut(model, -1, 2, fused=True) == kinds(model)
    assert cut(model, -1, 2, fused=False) != kinds(model)


@pytest.mark.parametrize(
    ("summand", "fused", "values"),
    [
        ("b", True, 2),
        ("b", False, 3),
        ("x", True, 3),  # it is the caller's
        ("a", True, 2),  # beside the result: it is multiplied, too
        ("c", True, 2),  # it is smaller
    ],
)
def test_a_sum_is_written_over_what_is_added_where_that_is_not_needed(summand: str, fused: bool, values: int) -> None:
    nodes = f"a = Relu(x) b = Neg(a) m = MatMul(a, w) y = Add(m, {summand})"
    model = graph(nodes, "float[64,6] x", "float[64,6] y", w=(6, 6), c=(6,))
    facts = Facts(model, fused)
    assert Lifetimes(facts).peak(len(facts.units) - 1) == values * 4 * 64 * 6


@pytest.mark.parametrize(
    ("shape", "axis", "fused", "joined"),
    [
        ("1,8,6", 1, True, True),
        ("8,6", 0, True, True),
        ("1,8,6,6", 2, True, True),  # rows of one image, as a compiler keeps the channels last
        ("1,8,6", 1, False, False),
        ("2,8,6", 1, True, False),
        ("1,8,6", 2, True, False),
        ("1,8,6,6", 1, True, False),
        ("1,8,6,6", 3, True, False),
        ("2,8,6,6", 2, True, False),
    ],
)
def test_a_whole_begins_with_its_first_piece_where_nothing_is_copied(
    shape: str, axis: int, fused: bool, joined: bool
) -> None:
    sizes = [int(size) for size in shape.split(",")]
    twice = ",".join(str(size * (1 + (i == axis))) for i, size in enumerate(sizes))
    nodes = f"a = Softmax(x) b = Transpose(x) c = Transpose(b) j = Concat<axis = {axis}>(a, c) y = Softmax(j)"
    facts = Facts(graph(nodes, f"float[{shape}] x", f"float[{twice}] y"), fused)
    lifetimes, one = Lifetimes(facts), 4 * math.prod(sizes)
    result = 2 * one if fused else 0  # has memory of its own all the time
    found = [lifetimes.peak(index) - result for index in range(4)]
    assert found == [one * count for count in ((3, 4, 3, 2) if joined else (2, 3, 3, 4))]


def test_what_is_joined_twice_lies_in_the_outer_whole() -> None:
    nodes = "a = Softmax(x) c = Exp(x) j = Concat<axis = 0>(a, c) d = Sin(x) k = Concat<axis = 0>(j, d) y = Softmax(k)"
    lifetimes, one = Lifetimes(Facts(graph(nodes, "float[8,6] x", "float[24,6] y"), True)), 4 * 8 * 6
    assert [lifetimes.peak(index) // one for index in range(5)] == [3 + 1 + 3] * 4 + [3 + 3]


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Softmax(x) j = Concat<axis = 0>(a, a) y = Softmax(j)",  # twice the same
        "a = Softmax(x) j = Concat<axis = 0>(a, x) y = Softmax(j)",  # what the caller gave
        "a = Softmax(x) b = Exp(x) j = Concat<axis = 0>(a, b) k = Softmax(j) s = Exp(b) y = Concat<axis = 0>(k, s)",
    ],
)
def test_pieces_that_are_copied_are_values_of_their_own(nodes: str) -> None:
    rows = 24 if "k" in nodes else 16
    lifetimes = Lifetimes(Facts(graph(nodes, "float[8,6] x", f"float[{rows},6] y"), True))
    assert lifetimes.peak(0) == 4 * 6 * (rows + 8 + 8)  # the result, x and a


def test_equal_segments_differ_where_one_gives_the_result() -> None:
    """It has memory of its own."""
    nodes = "a = Exp(x) b = Relu(a) c = Softmax(b) d = Exp(c) e = Relu(d) y = Softmax(e)"
    facts = Facts(graph(nodes, "float[8,6] x", "float[8,6] y"), True)
    lifetimes, units = Lifetimes(facts), len(facts.units)
    signatures = [
        signature_of(facts, lifetimes.segment(first, first + units // 2), frozenset()) for first in (0, units // 2)
    ]
    assert signatures[0] != signatures[1]


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Relu(x) m = MatMul(a, w) y = Mul(m, x)",  # it is not the last
        "a = Relu(x) m = MatMul(a, w) b = Add(m, x) z = Relu(m) y = Add(b, z)",  # it is read again
        "a = Relu(x) m = MatMul(a, w) b = Add(m, m) y = Add(b, x)",  # it is added to itself
        "m = MatMul(x, w) y = Add(m, x)",  # no segment in front of the product
        "a = Relu(x) b = MatMul(a, a) y = Relu(b)",  # not a constant
        "a = Relu(x) m = MatMul(a, w) y = Add(m, a)",  # the operand is also added whole
    ],
)
def test_other_products_are_not_summed_up(nodes: str) -> None:
    model = graph(nodes, "float[6,6] x", "float[6,6] y", w=(6, 6))
    assert cut(model, -1, 3, fused=False) == kinds(model)


# --- all examples ---


@st.composite
def convolutions(draw: Callable[[st.SearchStrategy[Any]], Any]) -> ir.Model:
    """Chains of convolutions and pools of all kinds, with a skip connection where the shapes allow one."""
    channels, sizes = draw(st.sampled_from([1, 2, 4])), [draw(st.integers(7, 15)), draw(st.integers(5, 8))]
    lines, weights, value = [], {}, "x"
    inputs = f"float[1,{channels},{sizes[0]},{sizes[1]}] x"
    for number in range(draw(st.integers(1, 4))):
        kernel, stride = [draw(st.integers(1, 3)) for _ in range(2)], [draw(st.integers(1, 2)) for _ in range(2)]
        dilation = [draw(st.integers(1, 2)) for _ in range(2)]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        pads = [draw(st.integers(0, min(k, r) - 1)) for k, r in zip(kernel * 2, reach * 2, strict=True)]
        op = draw(st.sampled_from(["Conv", "MaxPool", "AveragePool", "Relu"]))
        window = f"strides = {stride}, dilations = {dilation}, pads = {pads}, kernel_shape = {kernel}"
        out = [(size + pads[i] + pads[i + 2] - reach[i]) // stride[i] + 1 for i, size in enumerate(sizes)]
        if op != "Relu" and min(out) < 2:
            continue
        new = f"v{number}"
        if op == "Relu":
            lines.append(f"{new} = Relu({value})")
        elif op == "Conv":
            group = draw(st.sampled_from([1, channels]))
            weights[f"w{number}"] = (channels, channels // group, *kernel)
            lines.append(f"{new} = Conv<group = {group}, {window}>({value}, w{number})")
            if out == sizes and draw(st.booleans()):
                lines.append(f"s{number} = Add({new}, {value})")
                new = f"s{number}"
        else:
            counted = f", count_include_pad = {draw(st.integers(0, 1))}" if op == "AveragePool" else ""
            lines.append(f"{new} = {op}<{window}{counted}>({value})")
        sizes = sizes if op == "Relu" else out
        value = new
    lines.append(f"y = Abs({value})")
    return graph(" ".join(lines), inputs, f"float[1,{channels},{sizes[0]},{sizes[1]}] y", **weights)


@settings(max_examples=40, deadline=None)
@given(convolutions(), st.sampled_from([2, 3]), st.integers(2, 5))
def test_property_chains_of_windows(model: ir.Model, axis: int, count: int) -> None:
    check_pass(CutAll(axis, count), model)


@settings(max_examples=40, deadline=None)
@given(
    models(
        families=(
            "matmul",
            "norm",
            "layer",
            "attention",
            "gelu-parts",
            "softmax",
            "binary",
            "unary",
            "reshape",
            "conv",
        ),
        opsets=(23,),
        static=True,
    ),
    st.floats(0.3, 0.95),
    st.booleans(),
)
def test_property_budgets(model: ir.Model, part: float, fused: bool) -> None:
    budget = int(figures_of(model, fused).peak * part)
    assume(budget)
    try:
        result = check_pass(TileMemory(budget, fused), model)
    except BudgetError as error:
        assert error.smallest > budget
    else:
        assert figures_of(result, fused).peak <= budget


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["", "b = Add(p, c) "]),
    st.sampled_from(["y = Add({}, x)", "y = Add(x, {})", "s = Add({}, n) y = Add(s, x)", "y = Mul({}, x)"]),
    st.integers(2, 8),
    st.integers(3, 12),
    st.booleans(),
)
def test_property_sums(bias: str, tail: str, count: int, hidden: int, fused: bool) -> None:
    nodes = f"n = LayerNormalization(x, g) m = MatMul(n, w) a = Gelu(m) p = MatMul(a, v) {bias}"
    weights: dict[str, tuple[int, ...]] = {"g": (8,), "w": (8, hidden), "v": (hidden, 8), "c": (8,)}
    model = graph(nodes + tail.format("b" if bias else "p"), "float[1,5,8] x", "float[1,5,8] y", **weights)
    found = cut(model, -1, count, fused)
    pieces = len(piece_windows(0, hidden, count))
    # What multiplies is no sum; n is needed by the pieces, and cannot be added from outside.
    summed = "Mul" not in tail and "n)" not in tail and pieces >= (3 if fused else 2) and hidden >= count
    assert found.count("Gelu") == (pieces if summed else 1)
