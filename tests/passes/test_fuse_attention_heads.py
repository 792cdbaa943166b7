"""Heads that are cut out of other axes, shared, folded into the batch, or kept in a cache."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from optimizer.ir.query import int_attribute
from passes.fuse_attention import FuseAttention
from tests.passes.attention_graphs import ALIKE, REPEATED, fused, kinds, only_attention, packed, reason
from tests.passes.transform import assert_becomes

# --- Heads and axes ---


@pytest.mark.parametrize(("how", "heads"), [(ALIKE, 4), (REPEATED, 2), (REPEATED, 1)])
def test_heads_that_are_cut_out_of_three_axes(how: str, heads: int) -> None:
    assert_becomes(
        FuseAttention(),
        packed(how, heads),
        f"""g (float[B,S,32] q, float[B,T,{heads * 8}] k, float[B,T,{heads * 8}] v) => (float[B,S,32] y) {{
            y = Attention<scale = 0.5, q_num_heads = 4, kv_num_heads = {heads}>(q, k, v) }}""",
    )


def test_keys_for_one_head_are_repeated_by_the_product() -> None:
    text = """g (float[B,4,S,8] q, float[B,1,T,8] k, float[B,1,T,8] v) => (float[B,4,S,8] y) {
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, v) }"""
    assert kinds(fused(text)) == ["Attention"]


def test_heads_first_as_in_multi_head_attention_of_pytorch() -> None:
    text = """g (float[S,B,32] q, float[T,B,32] k, float[T,B,32] v) => (float[S,B,32] y) <float half = {0.5},
        int64[4] four = {0,0,4,8}, int64[3] three = {0,0,32}> {
        q1 = Reshape(q, four) k1 = Reshape(k, four) v1 = Reshape(v, four) q2 = Transpose<perm = [1,2,0,3]>(q1)
        kt = Transpose<perm = [1,2,3,0]>(k1) v2 = Transpose<perm = [1,2,0,3]>(v1) q3 = Mul(q2, half)
        a = MatMul(q3, kt) p = Softmax(a) o = MatMul(p, v2) o1 = Transpose<perm = [2,0,1,3]>(o)
        y = Reshape(o1, three) }"""
    assert kinds(fused(text)) == ["Transpose", "Transpose", "Transpose", "Attention", "Transpose"]


def test_keys_that_were_made_three_axes_for_their_transpose() -> None:
    """As exporters write `scaled_dot_product_attention`."""
    text = """g (float[2,4,3,8] q, float[2,4,5,8] k, float[2,4,5,8] v) => (float[2,4,3,8] y) <float half = {0.5},
        int64[3] three = {-1,5,8}, int64[4] four = {2,4,8,5}> {
        k1 = Reshape(k, three) k2 = Transpose<perm = [0,2,1]>(k1) k3 = Reshape(k2, four) k4 = Mul(k3, half)
        q1 = Mul(q, half) a = MatMul(q1, k4) p = Softmax(a) y = MatMul(p, v) }"""
    assert kinds(fused(text)) == ["Attention"]


@pytest.mark.parametrize("axes", ["", "B,"])
def test_fewer_axes(axes: str) -> None:
    perm = [1, 0] if not axes else [0, 2, 1]
    text = f"""g (float[{axes}S,8] q, float[{axes}T,8] k, float[{axes}T,6] v, float[S,T] m) => (float[{axes}S,6] y) {{
        t = Transpose<perm = {perm}>(k) a = MatMul(q, t) i = Cast<to = 7>(m) f = Cast<to = 1>(i) s = Add(a, f)
        p = Softmax(s) y = MatMul(p, v) }}"""
    around = [] if axes else ["Unsqueeze"] * 3
    assert kinds(fused(text)) == ["Cast", "Cast", *around, "Attention", *(["Squeeze"] if around else [])]


def test_a_mask_for_each_batch_of_three_axes() -> None:
    text = """g (float[B,S,8] q, float[B,T,8] k, float[B,T,6] v, int64[B,S,T] m) => (float[B,S,6] y) {
        t = Transpose<perm = [0,2,1]>(k) a = MatMul(q, t) f = Cast<to = 1>(m) s = Add(a, f)
        p = Softmax(s) y = MatMul(p, v) }"""
    only_attention(fused(text))


# --- The cache ---

CACHE = """g (float[B,4,S,8] q, float[B,4,P,8] pk, float[B,4,P,8] pv, float[B,4,S,8] k, float[B,4,S,8] v)
    => (float[B,4,S,8] y, float[B,4,T,8] nk, float[B,4,T,8] nv) <float half = {0.5}, float inf = {-inf},
        int64 zero = {0}, int64 one = {1}, int64[1] axis = {1}> {
        nk = Concat<axis = 2>(pk, k) nv = Concat<axis = AXIS>(pv, v) t = Transpose<perm = [0,1,3,2]>(nk)
        a = MatMul(q, t) b = Mul(a, half) MASK p = Softmax(s) y = MatMul(p, nv) }"""
CAUSAL = """s0 = Shape<start = 2, end = 3>(q) p0 = Shape<start = 2, end = 3>(pk) t0 = Add(s0, p0) s1 = Squeeze(s0)
    p1 = Squeeze(p0) t1 = Squeeze(t0) i = Range(p1, t1, one) j = Range(zero, t1, one) i1 = Unsqueeze(i, axis)
    c = LessOrEqual(j, i1) s = Where(c, b, inf)"""


def test_the_past() -> None:
    text = CACHE.replace("MASK", "s = Mul(b, half)").replace("AXIS", "-2")
    model = fused(text)
    assert kinds(model) == ["Attention"]
    assert [value and value.name for value in model.graph[0].inputs] == ["q", "k", "v", None, "pk", "pv"]
    assert [value.name for value in model.graph.outputs] == ["y", "nk", "nv"]


def test_the_causal_mask_counts_from_the_end_of_the_past() -> None:
    model = fused(CACHE.replace("MASK", CAUSAL).replace("AXIS", "2"))
    assert kinds(model) == ["Attention"]
    assert int_attribute(model.graph[0], "is_causal", 0) == 1


def test_a_mask_that_forgets_the_past_stays_a_mask() -> None:
    model = fused(
        CACHE.replace("MASK", CAUSAL.replace("Range(p1, t1, one)", "Range(zero, s1, one)")).replace("AXIS", "2")
    )
    node = only_attention(model)
    assert int_attribute(node, "is_causal", 0) == 0
    assert node.inputs[3] is not None


def test_the_past_along_another_axis_stays() -> None:
    text = """g (float[B,4,S,8] q, float[B,4,T,8] pk, float[B,4,T,8] pv, float[B,4,T,8] k) => (float[B,4,S,16] y) {
        nv = Concat<axis = 3>(pv, k) t = Transpose<perm = [0,1,3,2]>(pk) a = MatMul(q, t) p = Softmax(a)
        y = MatMul(p, nv) }"""
    assert kinds(fused(text)) == ["Concat", "Attention"]


# --- Keys that are repeated in other ways ---

TILED = REPEATED.replace("Expand", "Tile")
STACKED = REPEATED.replace("Expand(k3, times)", "Concat<axis = 2>(k3, k3)").replace(
    "Expand(v3, times)", "Concat<axis = 2>(v3, v3)"
)
ALL_ONCE_MORE = """k2 = Transpose<perm = [0,2,1,3]>(k1) v3 = Transpose<perm = [0,2,1,3]>(v1)
    k3 = Concat<axis = 1>(k2, k2) kt = Transpose<perm = [0,1,3,2]>(k3) v2 = Concat<axis = 1>(v3, v3)"""
BEFORE_THE_HEADS_ARE_TURNED = """k2 = Unsqueeze(k1, three_1) k3 = Expand(k2, inner) k4 = Reshape(k3, rows)
    kt = Transpose<perm = [0,2,3,1]>(k4) v3 = Unsqueeze(v1, three_1) v4 = Expand(v3, inner) v5 = Reshape(v4, rows)
    v2 = Transpose<perm = [0,2,1,3]>(v5)"""


def shared(how: str, heads: int = 2) -> str:
    inner = f"int64[1] three_1 = {{3}}, int64[5] inner = {{1,1,1,{4 // heads},1}}, int64[4] rows = {{0,0,4,8}}"
    return packed(how, heads).replace("<float half", f"<{inner}, float half")


@pytest.mark.parametrize("how", [TILED, STACKED, BEFORE_THE_HEADS_ARE_TURNED])
def test_keys_that_are_repeated_for_two_query_heads(how: str) -> None:
    node = only_attention(fused(shared(how)))
    assert [value and value.name for value in node.inputs] == ["q", "k", "v"]
    assert int_attribute(node, "kv_num_heads", 0) == 2


def test_copies_of_all_heads_are_no_groups() -> None:
    """The query heads 0 and 2 share a key here, not 0 and 1."""
    model = fused(shared(ALL_ONCE_MORE))
    assert kinds(model).count("Concat") == 2
    assert only_attention(model).inputs[1] is not model.graph.inputs[1]


def test_copies_of_one_head_are_a_group() -> None:
    model = fused(shared(ALL_ONCE_MORE.replace("(k2, k2)", "(k2,k2,k2,k2)").replace("(v3, v3)", "(v3,v3,v3,v3)"), 1))
    assert kinds(model) == ["Attention"]
    assert int_attribute(model.graph[0], "kv_num_heads", 0) == 1


@pytest.mark.parametrize(
    ("key", "repeat"),
    [
        ("1,1", "Expand(k, to)"),
        ("B,2", "Tile(k, twice)"),
        ("B,2", "Concat<axis = 1>(k, k2)"),
        ("B,2", "Concat<axis = 1>(k, k)"),
    ],
    ids=["along two axes", "an axis that is longer than 1", "something else", "all heads"],
)
def test_keys_that_are_not_repeated_for_groups(key: str, repeat: str) -> None:
    text = f"""g (float[B,4,S,8] q, float[{key},T,8] k) => (float[B,4,S,8] y)
        <int64[4] twice = {{1,2,1,1}}, int64 zero = {{0}}, int64[3] rest = {{4,1,1}}> {{
        b = Shape<start = 0, end = 1>(q) to = Concat<axis = 0>(b, rest) k2 = Neg(k)
        k1 = {repeat} kt = Transpose<perm = [0,1,3,2]>(k1) a = MatMul(q, kt) p = Softmax(a) y = MatMul(p, k1) }}"""
    model = fused(text)
    assert [value.name for value in only_attention(model).inputs if value] == ["q", "k1", "k1"]


def test_keys_and_values_that_are_repeated_differently() -> None:
    text = """g (float[B,4,S,8] q, float[B,1,T,8] k, float[B,2,T,8] v) => (float[B,4,S,8] y)
        <int64[1] two = {2}, int64[4] four = {1,4,1,1}, int64[5] times = {1,1,2,1,1}, int64[4] all = {0,4,-1,8}> {
        k1 = Expand(k, four) v1 = Unsqueeze(v, two) v2 = Expand(v1, times) v3 = Reshape(v2, all)
        t = Transpose<perm = [0,1,3,2]>(k1) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, v3) }"""
    assert [value.name for value in only_attention(fused(text)).inputs if value] == ["q", "k1", "v3"]


@pytest.mark.parametrize(("key", "value"), [(4, 1), (1, 4)])
def test_a_single_head_of_one_is_written_out_for_the_heads_of_the_other(key: int, value: int) -> None:
    text = f"""g (float[B,4,S,8] q, float[B,{key},T,8] k, float[B,{value},T,8] v) => (float[B,4,S,8] y) {{
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, v) }}"""
    assert kinds(fused(text)) == ["Expand", "Attention"]


def test_a_single_head_that_only_the_keys_are_repeated_from() -> None:
    text = """g (float[B,4,S,8] q, float[B,1,T,8] k, float[B,1,T,8] v) => (float[B,4,S,8] y)
        <int64[4] times = {1,4,1,1}> { k1 = Expand(k, times)
        t = Transpose<perm = [0,1,3,2]>(k1) a = MatMul(q, t) p = Softmax(a) y = MatMul(p, v) }"""
    assert kinds(fused(text)) == ["Attention"]


# --- Batch and heads in one axis ---


def folded(*, mask: str = "", add: str = "", perm: str = "[1,0,2]", extra: str = "", batch: str = "2") -> str:
    """As `nn.MultiheadAttention` has them when it gives its weights."""
    rows = {"2": "8", "1": "4", "B": "-1"}[batch]
    return f"""g (float[3,{batch},32] q, float[5,{batch},32] k, float[5,{batch},32] v{mask}) => (float[3,{batch},32] y)
        <float half = {{0.5}}, int64[3] queries = {{3,{rows},8}}, int64[3] keys = {{5,{rows},8}},
        int64[2] flat = {{-1,32}}, int64[3] three = {{3,-1,32}}{extra}> {{
        q1 = Reshape(q, queries) k1 = Reshape(k, keys) v1 = Reshape(v, keys)
        q2 = Transpose<perm = {perm}>(q1) kt = Transpose<perm = [1,2,0]>(k1) v2 = Transpose<perm = {perm}>(v1)
        q3 = Mul(q2, half) a = MatMul(q3, kt) {add or "s = Mul(a, half)"} p = Softmax(s) o = MatMul(p, v2)
        o1 = Transpose<perm = [1,0,2]>(o) o2 = Reshape(o1, flat) y = Reshape(o2, three) }}"""


def heads_of(model: ir.Model) -> tuple[int, int]:
    node = only_attention(model)
    return int_attribute(node, "q_num_heads", 0), int_attribute(node, "kv_num_heads", 0)


@pytest.mark.parametrize("batch", ["1", "2", "B"])
def test_heads_that_are_folded_into_the_batch(batch: str) -> None:
    model = fused(folded(batch=batch))
    assert heads_of(model) == (4, 4)
    assert set(kinds(model)) <= {"Attention", "Transpose", "Reshape"}


@pytest.mark.parametrize(
    ("mask", "add", "extra"),
    [
        (", float[8,3,5] m", "s = Add(m, a)", ""),
        (", float[1,3,5] m", "s = Add(a, m)", ""),
        (", float[3,5] m", "s = Add(a, m)", ""),
        (
            ", float[2,5] m",
            "m1 = Reshape(m, places) m2 = Expand(m1, heads) m3 = Reshape(m2, fold) s = Add(m3, a)",
            ", int64[4] places = {2,1,1,5}, int64[4] heads = {1,4,1,1}, int64[3] fold = {8,1,5}",
        ),
        (", bool[8,3,5] m", "s = Where(m, low, a)", ", float low = {-1e9}"),
    ],
)
def test_masks_are_unfolded_with_them(mask: str, add: str, extra: str) -> None:
    model = fused(folded(mask=mask, add=add, extra=extra))
    assert heads_of(model) == (4, 4)
    assert len(only_attention(model).inputs) == 4


def test_a_batch_of_no_heads_stays_a_batch() -> None:
    """The first axis is none that heads were cut out of together with their size."""
    text = """g (float[8,3,8] q, float[8,5,8] k, float[8,5,8] v) => (float[8,3,8] y) {
        kt = Transpose<perm = [0,2,1]>(k) a = MatMul(q, kt) p = Softmax(a) y = MatMul(p, v) }"""
    model = fused(text)
    assert kinds(model) == ["Attention"]
    assert int_attribute(model.graph[0], "q_num_heads", 0) in (0, 1)


def test_keys_that_cannot_be_taken_apart_like_the_queries() -> None:
    text = """g (float[3,B,32] q, float[M,5,8] k, float[M,5,8] v) => (float[M,3,8] y) <int64[3] queries = {3,-1,8}> {
        q1 = Reshape(q, queries) q2 = Transpose<perm = [1,0,2]>(q1) kt = Transpose<perm = [0,2,1]>(k)
        a = MatMul(q2, kt) p = Softmax(a) y = MatMul(p, v) }"""
    assert "are not known to have the same batch" in reason(text)


# --- Rotations on the way ---


@pytest.mark.parametrize("said", ["", ", num_heads = 4"])
def test_a_rotation_takes_three_axes_as_well(said: str) -> None:
    """PyTorch's exporter says the number of heads although there are four axes."""
    how = f"""k2 = Transpose<perm = [0,2,1,3]>(k1) k3 = RotaryEmbedding<interleaved = 0{said}>(k2, c, c)
        kt = Transpose<perm = [0,1,3,2]>(k3) v2 = Transpose<perm = [0,2,1,3]>(v1)"""
    model = fused(packed(how).replace("float[B,T,32] v)", "float[B,T,32] v, float[B,T,4] c)"))
    assert kinds(model) == ["RotaryEmbedding", "Attention"]
    assert int_attribute(model.graph[0], "num_heads", 0) == 4
    assert model.graph[0].inputs[0] is model.graph.inputs[1]
