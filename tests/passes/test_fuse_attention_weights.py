"""Probabilities that are used besides: they are an output of the `Attention`."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.ir.query import int_attribute
from optimizer.reference import run_reference
from passes.fuse_attention import FuseAttention
from tests.passes.attention_graphs import BOOL_MASK, FLOAT_MASK, attention, fused, kinds, only_attention, reason
from tests.passes.test_fuse_attention_heads import CACHE
from tests.passes.transform import assert_becomes

WITH_WEIGHTS = "(float[B,4,S,6] y, float[B,4,S,5] w)"


def weighted(scores: str = "s = Mul(a, half)", use: str = "w = Neg(p)", *, extra: str = "", after: str = "") -> str:
    """The attention of `attention`, and `w`, computed from the probabilities `p`."""
    text = attention(scores, extra=extra, after=(after or "p = Softmax(s)") + " " + use)
    return text.replace("(float[B,4,S,6] y)", WITH_WEIGHTS)


def test_probabilities_that_are_an_output_of_the_graph() -> None:
    assert_becomes(
        FuseAttention(),
        attention(after="w = Softmax(s)")
        .replace("MatMul(p, v)", "MatMul(w, v)")
        .replace("(float[B,4,S,6] y)", WITH_WEIGHTS),
        f"""g (float[B,4,S,8] q, float[B,4,5,8] k, float[B,4,5,6] v) => {WITH_WEIGHTS} {{
            y, , , w = Attention<scale = 0.5, qk_matmul_output_mode = 3>(q, k, v) }}""",
    )


def test_what_uses_them_waits_for_the_attention() -> None:
    """It stands before the product with the values, and what needs it in turn as well."""
    model = fused(weighted(use="u = Neg(p) w = Exp(u)"))
    assert kinds(model) == ["Attention", "Neg", "Exp"]
    assert int_attribute(model.graph[0], "qk_matmul_output_mode", 0) == 3


def test_what_a_subgraph_uses_waits_too() -> None:
    use = """c = Cast<to = 9>(half) w = If(c) <then_branch = f () => (float[B,4,S,5] w1) { w1 = Neg(p) },
        else_branch = h () => (float[B,4,S,5] w2) { w2 = Exp(p) }>"""
    model = fused(weighted(use=use))
    assert [kind for kind in kinds(model) if kind != "Cast"] == ["Attention", "If"]


def test_a_second_product() -> None:
    text = weighted(use="z = MatMul(p, v)").replace("float[B,4,S,5] w", "float[B,4,S,6] z")
    assert kinds(fused(text)) == ["Attention", "MatMul"]


@pytest.mark.parametrize("mask", ["s = Add(b, m)", "s = Where(m, b, inf)", "s = Where(m, b, lowest)"])
def test_a_row_that_sees_nothing_has_the_weights_that_it_had(mask: str) -> None:
    """`check_pass` gives random conditions, so some rows see nothing."""
    only_attention(fused(weighted(f"b = Mul(a, half) {mask}", extra=FLOAT_MASK if "Add" in mask else BOOL_MASK)))


def test_nan_that_become_zero() -> None:
    guard = "o = Softmax(s) n = IsNaN(o) p = Where(n, zero, o)"
    model = fused(weighted("b = Mul(a, half) s = Where(m, b, inf)", extra=BOOL_MASK, after=guard))
    assert kinds(model) == ["Attention", "Neg"]
    q, k, v = (np.ones((1, 4, n, d), np.float32) for n, d in ((3, 8), (5, 8), (5, 6)))
    y, w = run_reference(model, [q, k, v, np.zeros((1, 1, 3, 5), np.bool_)])
    assert not y.any()
    assert not w.any()


@pytest.mark.parametrize(("axes", "wanted"), [("", 2), ("B,", 3)])
def test_fewer_axes(axes: str, wanted: int) -> None:
    perm = [1, 0] if not axes else [0, 2, 1]
    text = f"""g (float[{axes}S,8] q, float[{axes}T,8] k, float[{axes}T,6] v) =>
        (float[{axes}S,6] y, float[{axes}S,T] p) {{
        t = Transpose<perm = {perm}>(k) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, v) }}"""
    model = fused(text)
    only_attention(model)
    assert len(model.graph.outputs[1].shape or ()) == wanted


WEIGHTS_OF_FOLDED_HEADS = """g (float[3,2,32] q, float[5,2,32] k, float[5,2,32] v) => (float[3,2,32] y, float[2,3,5] w)
    <float half = {0.5}, int64[3] queries = {3,8,8}, int64[3] keys = {5,8,8}, int64[4] four = {2,4,3,5},
    int64[1] heads = {1}, int64[3] three = {3,2,32}> {
    q1 = Reshape(q, queries) k1 = Reshape(k, keys) v1 = Reshape(v, keys) q2 = Transpose<perm = [1,0,2]>(q1)
    kt = Transpose<perm = [1,2,0]>(k1) v2 = Transpose<perm = [1,0,2]>(v1) a = MatMul(q2, kt) p = Softmax(a)
    o = MatMul(p, v2) o1 = Transpose<perm = [1,0,2]>(o) y = Reshape(o1, three)
    p1 = Reshape(p, four) w = ReduceMean<keepdims = 0>(p1, heads) }"""


def test_the_weights_of_heads_that_are_folded_into_the_batch() -> None:
    """As in `nn.MultiheadAttention` with its default options."""
    model = fused(WEIGHTS_OF_FOLDED_HEADS)
    assert int_attribute(only_attention(model), "q_num_heads", 0) == 4
    assert [kind for kind in kinds(model) if kind not in ("Transpose", "Reshape")] == ["Attention", "ReduceMean"]


def test_the_past() -> None:
    text = CACHE.replace("MASK", "s = Mul(b, half)").replace("AXIS", "2")
    text = text.replace("float[B,4,T,8] nv)", "float[B,4,T,8] nv, float[B,4,S,T] p)")
    model = fused(text)
    assert kinds(model) == ["Attention"]
    assert [value.name for value in model.graph[0].outputs] == ["y", "nk", "nv", "p"]


# --- Near misses ---


def test_the_scores_are_no_output() -> None:
    text = attention().replace("(float[B,4,S,6] y)", "(float[B,4,S,6] y, float[B,4,S,5] s)")
    assert reason(text) == "the scores 's' are used elsewhere too"


GUARDED = "o = Softmax(s) n = IsNaN(o) p = Where(n, zero, o)"


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (GUARDED + " w = Neg(o)", "the probabilities 'o' are used elsewhere too, and cast or chosen from after it"),
        (GUARDED + " w = Cast<to = 1>(n)", "the probabilities 'o' are used elsewhere too"),
        ("w = Softmax(s) p = Cast<to = 1>(w)", "the probabilities 'w' are an output of the graph, and cast"),
    ],
)
def test_probabilities_that_are_not_those_of_the_product(after: str, why: str) -> None:
    assert reason(attention(after=after).replace("(float[B,4,S,6] y)", WITH_WEIGHTS)).startswith(why)


def test_values_that_depend_on_the_probabilities() -> None:
    text = """g (float[B,4,5,8] q, float[B,4,5,8] k) => (float[B,4,5,5] y) {
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) p = Softmax(a) u = Neg(p) y = MatMul(p, u) }"""
    assert reason(text) == "the value 'u' depends on the probabilities 'p'"


def test_probabilities_that_are_multiplied_by_themselves() -> None:
    text = """g (float[B,4,5,8] q, float[B,4,5,8] k) => (float[B,4,5,5] y) {
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, p) }"""
    assert reason(text) == "the probabilities 'p' are multiplied by themselves"


def test_probabilities_of_the_graph_around() -> None:
    text = """g (bool c, float[B,4,S,8] q, float[B,4,T,8] k, float[B,4,T,6] v) => (float[B,4,S,6] z, float[B,4,S,T] w) {
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) p = Softmax(a) w = Neg(p)
        z = If (c) <then_branch = f () => (float[B,4,S,6] y) { y = MatMul(p, v) },
        else_branch = h () => (float[B,4,S,6] y2) { y1 = MatMul(p, v) y2 = Neg(y1) }> }"""
    assert reason(text) == "the probabilities 'p' are used outside of the subgraph, too"
