"""Attention as it is written by hand and by exporters, before and after."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.ir.provenance import mark_originals, origins
from optimizer.ir.query import float_attribute, int_attribute
from optimizer.pass_manager import PassManager
from optimizer.reference import run_reference
from optimizer.testing import check_pass, models
from passes.fuse_attention import FuseAttention
from tests.passes.attention_graphs import (
    BOOL_MASK,
    FLOAT_MASK,
    NUMBERS,
    REPEATED,
    attention,
    fused,
    kinds,
    only_attention,
    packed,
    reason,
)
from tests.passes.transform import assert_becomes, assert_stays, read

# --- Scale and soft cap ---


def test_the_plainest() -> None:
    assert_becomes(
        FuseAttention(),
        attention(),
        """g (float[B,4,S,8] q, float[B,4,5,8] k, float[B,4,5,6] v) => (float[B,4,S,6] y) {
            y = Attention<scale = 0.5>(q, k, v) }""",
    )


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ("s = Mul(half, a)", 0.5),
        ("s = Div(a, two)", 0.5),
        ("b = Mul(a, half) s = Div(b, quarter)", 2.0),
    ],
)
def test_the_scale_of_the_scores(scores: str, scale: float) -> None:
    assert float_attribute(only_attention(fused(attention(scores))), "scale", 0.0) == scale


@pytest.mark.parametrize("operand", ["q", "k", "both"])
def test_the_scale_of_the_operands(operand: str) -> None:
    text = f"""g (float[B,4,S,8] q, float[B,4,5,8] k, float[B,4,5,6] v) => (float[B,4,S,6] y) <{NUMBERS}> {{
        r = Mul(q, {"half" if operand != "k" else "one"}) t = Transpose<perm = [0,1,3,2]>(k)
        u = Mul(t, {"half" if operand != "q" else "one"}) a = MatMul(r, u) p = Softmax(a) y = MatMul(p, v) }}"""
    model = fused(text)
    assert kinds(model) == ["Attention"]
    assert float_attribute(model.graph[0], "scale", 0.0) == (0.25 if operand == "both" else 0.5)


def test_the_soft_cap() -> None:
    node = only_attention(fused(attention("b = Mul(a, quarter) c = Div(b, two) d = Tanh(c) s = Mul(d, two)")))
    assert float_attribute(node, "softcap", 0.0) == 2.0
    assert float_attribute(node, "scale", 0.0) == 0.25


# --- Masks ---


def test_a_finite_mask_is_added() -> None:
    model = fused(
        attention("b = Mul(a, half) s = Add(c, b)", extra=", int64[B,1,S,5] n").replace(
            "a = Mat", "c = Cast<to = 1>(n) a = Mat"
        )
    )
    assert kinds(model) == ["Cast", "Attention"]


def test_any_other_added_mask_may_hide_a_row_which_is_nan_then() -> None:
    model = fused(attention("b = Mul(a, half) s = Add(b, m)", extra=FLOAT_MASK))
    assert kinds(model) == ["ReduceMax", "Sub", "Add", "Attention"]
    mask = np.zeros((1, 1, 3, 5), np.float32)
    mask[0, 0, 1] = -np.inf
    mask[0, 0, 2, 1:] = -np.inf
    q, k, v = (np.ones((1, 4, n, d), np.float32) for n, d in ((3, 8), (5, 8), (5, 6)))
    (y,) = run_reference(model, [q, k, v, mask])
    assert np.isnan(y[:, :, 1]).all()
    assert not np.isnan(y[:, :, [0, 2]]).any()


@pytest.mark.parametrize("fill", ["inf", "lowest", "hidden"])
@pytest.mark.parametrize("choice", ["Where(m, b, FILL)", "Where(m, FILL, b)"])
def test_scores_chosen_by_a_condition(fill: str, choice: str) -> None:
    """`check_pass` gives random conditions, so some rows see nothing."""
    model = fused(attention(f"b = Mul(a, half) s = {choice.replace('FILL', fill)}", extra=BOOL_MASK))
    assert kinds(model) == ["Where", *(["ReduceMax", "Sub", "Add"] if fill == "inf" else []), "Attention"]


def test_a_row_that_sees_nothing_has_equal_weights_with_a_finite_number() -> None:
    model = fused(attention("b = Mul(a, half) s = Where(m, b, lowest)", extra=BOOL_MASK))
    q, k, v = (np.random.default_rng(0).standard_normal((1, 4, n, d), np.float32) for n, d in ((3, 8), (5, 8), (5, 6)))
    (y,) = run_reference(model, [q, k, v, np.zeros((1, 1, 3, 5), np.bool_)])
    np.testing.assert_allclose(y, np.broadcast_to(v.mean(2, keepdims=True), y.shape), atol=1e-6)


def test_nan_that_become_zero_need_no_care() -> None:
    after = "o = Softmax(s) n = IsNaN(o) p = Where(n, zero, o)"
    model = fused(attention("b = Mul(a, half) s = Where(m, b, inf)", extra=BOOL_MASK, after=after))
    assert kinds(model) == ["Attention"]
    model = fused(attention("b = Mul(a, half) c = Where(m, zero, inf) s = Add(b, c)", extra=BOOL_MASK, after=after))
    assert kinds(model) == ["Attention"]
    model = fused(attention("b = Mul(a, half) s = Where(m, inf, b)", extra=BOOL_MASK, after=after))
    assert kinds(model) == ["Not", "Attention"]


def test_a_mask_of_nothing_falls_away() -> None:
    scores = "h = Shape(m) c = Expand(zero, h) b = Mul(a, half) s = Add(b, c)"
    assert len(only_attention(fused(attention(scores, extra=FLOAT_MASK))).inputs) == 3


def test_two_masks_are_added_and_scaled_as_they_were() -> None:
    scores = "b = Add(a, m) c = Mul(b, half) e = Cast<to = 1>(n) s = Sub(c, e)"
    model = fused(attention(scores, extra=FLOAT_MASK + ", int64[B,1,S,5] n"))
    assert Counter(kinds(model))["Mul"] == 2
    assert float_attribute(only_attention(model), "scale", 0.0) == 0.5


@pytest.mark.parametrize("shape", ["5", "1,5", "S,5", "B,1,1,5", "1,4,1,5", "B,4,S,5"])
def test_the_mask_is_written_out_for_the_queries(shape: str) -> None:
    text = attention("b = Mul(a, half) c = Cast<to = 1>(m) s = Add(b, c)", extra=f", int64[{shape}] m")
    node = only_attention(fused(text))
    assert ("Expand" in kinds(fused(text))) == ("S" not in shape)
    assert len(node.inputs) == 4


@pytest.mark.parametrize(
    "scores",
    [
        "b = Mul(a, half) s = Add(b, triangle)",
        "b = Mul(a, half) s = Where(seen, b, inf)",
        "b = Mul(a, half) h = Not(seen) s = Where(h, lowest, b)",
        "h = Expand(inf, square) c = Trilu<upper = 1>(h, next) b = Mul(a, half) s = Add(b, c)",
        "h = Expand(one, square) c = Trilu<upper = 0>(h) e = Equal(c, zero) b = Mul(a, half) s = Where(e, inf, b)",
        """i = Range(first, three, next) j = Unsqueeze(i, axis) e = LessOrEqual(i, j) b = Mul(a, half)
           s = Where(e, b, inf)""",
        """i = Range(first, three, next) j = Unsqueeze(i, axis) e = Greater(i, j) b = Mul(a, half)
           s = Where(e, lowest, b)""",
        """i = Range(first, three, next) j = Unsqueeze(i, axis) k1 = Add(j, next) e = Greater(k1, i) b = Mul(a, half)
           s = Where(e, b, lowest)""",
    ],
)
def test_a_causal_mask(scores: str) -> None:
    text = attention(scores, rows="3").replace("<float half", "<int64 three = {3}, int64[1] axis = {1}, float half")
    node = only_attention(fused(text))
    assert int_attribute(node, "is_causal", 0) == 1
    assert len([value for value in node.inputs if value is not None]) == 3


@pytest.mark.parametrize(
    "scores",
    [
        "i = Range(first, three, next) j = Unsqueeze(i, axis) e = Less(i, j) b = Mul(a, half) s = Where(e, b, lowest)",
        """i = Range(next, four, next) j = Unsqueeze(i, axis) e = GreaterOrEqual(i, j) b = Mul(a, half)
           s = Where(e, b, inf)""",
        "h = Expand(inf, square) c = Trilu<upper = 1>(h) b = Mul(a, half) s = Add(b, c)",
        "h = Expand(inf, square) c = Trilu<upper = 0>(h, next) b = Mul(a, half) s = Add(b, c)",
    ],
)
def test_what_is_not_causal(scores: str) -> None:
    text = attention(scores, rows="3").replace(
        "<float half", "<int64 three = {3}, int64 four = {4}, int64[1] axis = {1}, float half"
    )
    assert int_attribute(only_attention(fused(text)), "is_causal", 0) == 0


# --- Near misses ---


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (attention("s = Mul(a, pair)").replace("5", "2"), "scaled by something that is not one constant number"),
        (attention("s = Mul(a, minus)"), "scaled by -0.5, which is not a positive number"),
        (attention("s = Where(m, a, mild)", extra=BOOL_MASK), "not chosen by 'm' become -100, which does not mask"),
        (attention("s = Where(m, a, c)", extra=BOOL_MASK + ", float[B,4,S,5] c"), "between scores and one number"),
        (attention("s = Clip(a, mild)"), "a Clip stands between the product and the softmax"),
        (
            attention("s = Add(a, m)", extra=", float[B,1,S,M] m"),
            "the mask 'm' of shape [B, 1, S, M] is not known to fit",
        ),
        (attention("s = Add(a, m)", extra=", float[B,1,S,1] m"), "the mask 'm' says the same of every key"),
        (attention("s = Sub(m, a)", extra=FLOAT_MASK), "the scores 'a' are subtracted"),
        (attention("b = Add(a, m) c = Tanh(b) s = Mul(c, two)", extra=FLOAT_MASK), "a Add changes the scores before"),
        (attention("s = Mul(a, half)", after="p = Softmax<axis = 1>(s)"), "the softmax is along axis 1"),
        (attention("b = Cast<to = 10>(a) s = Cast<to = 1>(b)"), "are cast to float"),
    ],
)
def test_why_not(text: str, why: str) -> None:
    assert why in reason(text)


def test_scores_that_are_used_elsewhere() -> None:
    text = attention().replace("(float[B,4,S,6] y)", "(float[B,4,S,6] y, float[B,4,S,5] s)")
    assert reason(text) == "the scores 's' are used elsewhere too"


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        (("B,4,S,8", "C,4,T,8", "C,4,T,8"), "not known to have the same batch"),
        (("B,4,S,8", "B,3,T,8", "B,3,T,8"), "have 4, 3 and 3 heads"),
        (("B,4,S,8", "B,4,T,8", "B,2,T,8"), "have 4, 4 and 2 heads"),
        (("B,H,S,8", "B,H,T,8", "B,1,T,8"), "have H, H and 1 heads"),
        (("B,S,8", "B,T,8", "1,T,8"), "not known to have the same batch"),
        (("B,4,S,8", "B,4,T,8", "B,4,U,8"), "not known to have sizes that go together"),
        (("A,B,4,S,8", "A,B,4,T,8", "A,B,4,T,8"), "has rank 5, an Attention takes 2 to 4"),
        (("B,4,S,8", "T,8", "B,4,T,8"), "have ranks 4, 2 and 4"),
    ],
)
@pytest.mark.unwatched
def test_shapes_that_no_attention_has(shapes: tuple[str, str, str], why: str) -> None:
    q, k, v = shapes
    rank = len(k.split(","))
    perm = [*range(rank - 2), rank - 1, rank - 2]
    text = f"""g (float[{q}] q, float[{k}] k, float[{v}] v) => (float y) {{
        t = Transpose<perm = {perm}>(k) a = MatMul(q, t) p = Softmax(a) z = MatMul(p, v)
        y = ReduceSum<keepdims = 0>(z) }}"""
    result = PassManager([FuseAttention()]).run(read(text))
    assert not result.modified
    assert [why in miss.reason for miss in result.near_misses] == [True]


def test_an_older_opset_has_no_attention() -> None:
    result = PassManager([FuseAttention()]).run(read(attention(), opset=21))
    assert [miss.reason for miss in result.near_misses] == ["opset 21 has no Attention, opset 23 has"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (float[N,4] y) { y = Softmax(x) }",
        "g (float[N,4] x, float[4,2] w) => (float[N,2] y) { p = Softmax(x) y = MatMul(p, w) }",
        "g (float[N,4] x, float[4,4] w) => (float[N,4] y) { a = MatMul(x, w) y = Softmax(a) }",
        "g (float[4,4] x, float[4,4] w) => (float[4,4] y) { a = MatMul(x, w) p = Softmax(a) y = MatMul(w, p) }",
    ],
)
def test_no_near_miss(text: str) -> None:
    assert_stays(FuseAttention(), text)
    assert PassManager([FuseAttention()]).run(read(text)).near_misses == ()


# --- In its place ---


def test_inside_a_subgraph() -> None:
    text = """g (bool c, float[B,4,S,8] q, float[B,4,5,8] k, float[B,4,5,6] v) => (float[B,4,S,6] z)
        <float half = {0.5}> {
        z = If (c) <then_branch = f () => (float[B,4,S,6] y) {
            t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) s = Mul(a, half) p = Softmax(s) y = MatMul(p, v) },
        else_branch = h () => (float[B,4,S,6] y2) {
            t2 = Transpose<perm = [0,1,3,2]>(k) a2 = MatMul(q, t2) p2 = Softmax(a2) y2 = MatMul(p2, v) }> }"""
    model = check_pass(FuseAttention(), read(text))
    branches = [attribute.as_graph() for attribute in model.graph[0].attributes.values()]
    assert [[node.op_type for node in graph] for graph in branches] == [["Attention"], ["Attention"]]


def test_the_node_stands_for_all_that_it_replaces() -> None:
    model = read(packed(REPEATED, 2))
    mark_originals(model)
    PassManager([FuseAttention()]).run(model)
    node = only_attention(model)
    assert {"Softmax(p)", "MatMul(a)", "MatMul(o)", "Mul(s)", "Expand(k4)", "Reshape(y)"} <= set(origins(node))


def test_half_precision_that_is_widened_for_the_softmax() -> None:
    text = """g (float16[B,4,S,8] q, float16[B,4,T,8] k, float16[B,4,T,8] v) => (float16[B,4,S,8] y) {
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) s = Cast<to = 1>(a) o = Softmax(s) p = Cast<to = 10>(o)
        y = MatMul(p, v) }"""
    node = only_attention(fused(text))
    assert int_attribute(node, "softmax_precision", 0) == ir.DataType.FLOAT


def test_half_precision_can_be_left_alone() -> None:
    text = """g (float16[B,4,S,8] q, float16[B,4,8,T] t, float16[B,4,T,8] v) => (float16[B,4,S,8] y) {
        a = MatMul(q, t) o = Softmax(a) y = MatMul(o, v) }"""
    assert str(FuseAttention(half_precision=False)) == "fuse-attention{half_precision=false}"
    assert_stays(FuseAttention(half_precision=False), text)
    (miss,) = PassManager([FuseAttention(half_precision=False)]).run(read(text)).near_misses
    assert miss.reason == "it computes in float16, and half_precision is false"
    only_attention(fused(text))


# --- Any of these ---


@st.composite
def attentions(draw: st.DrawFn) -> str:
    """Attention in random words."""
    batch, rows, keys = (draw(st.sampled_from([size, 1, 3])) for size in ("B", "S", "T"))
    heads, groups = draw(st.sampled_from([(4, 4), (4, 2), (4, 1), (1, 1)]))
    scale, where = draw(st.sampled_from(["0.5", "2", "0.3"])), draw(st.sampled_from(["q", "k", "a", "aq"]))
    lines = ["q1 = Mul(q, scale)" if "q" in where else "q1 = Div(q, one)"]
    lines.append("k1 = Mul(scale, k)" if "k" in where else "k1 = Div(k, one)")
    if groups not in (heads, 1) or draw(st.booleans()):
        lines.append("k2 = Unsqueeze(k1, two) k3 = Expand(k2, times) k4 = Reshape(k3, all)")
        lines.append("v2 = Unsqueeze(v, two) v3 = Expand(v2, times) v4 = Reshape(v3, all)")
    else:
        lines.append("k4 = Div(k1, one) v4 = Div(v, one)")
    lines.append("kt = Transpose<perm = [0,1,3,2]>(k4) a = MatMul(q1, kt)")
    value = "a"
    if "a" in where:
        lines.append("b = Mul(a, scale)")
        value = "b"
    if draw(st.booleans()):
        lines.append(f"c0 = Mul({value}, half) c1 = Tanh(c0) c2 = Mul(c1, cap)")
        value = "c2"
    mask = ",".join(str(draw(st.sampled_from([full, 1]))) for full in (batch, heads, rows)) + f",{keys}"
    kind = draw(st.sampled_from(["none", "add", "where", "inf", "safe"]))
    if kind == "add":
        lines.append(f"f = Cast<to = 1>(m) s = Add({value}, f)")
    elif kind != "none":
        lines.append(f"s = Where(m, {value}, {'lowest' if kind == 'where' else 'inf'})")
    else:
        lines.append(f"s = Div({value}, one)")
    lines.append("o = Softmax(s) n = IsNaN(o) p = Where(n, zero, o)" if kind == "safe" else "p = Softmax(s)")
    repeated = f"{0 if batch == 'B' else batch},{heads},{-1 if keys == 'T' else keys},8"
    return f"""g (float[{batch},{heads},{rows},8] q, float[{batch},{groups},{keys},8] k,
        float[{batch},{groups},{keys},8] v, bool[{mask}] m) => (float[{batch},{heads},{rows},8] y)
        <float scale = {{{scale}}}, float one = {{1}},
        float half = {{0.5}}, float cap = {{3}}, float zero = {{0}}, float inf = {{-inf}}, float lowest = {{-3.4e38}},
        int64[1] two = {{2}}, int64[5] times = {{1,1,{heads // groups},1,1}},
        int64[4] all = {{{repeated}}}>
        {{ {" ".join(lines)} y = MatMul(p, v4) }}"""


@settings(max_examples=60, derandomize=True, deadline=None)
@given(attentions())
def test_property(text: str) -> None:
    model = read(text)
    result = check_pass(FuseAttention(), model)
    refused = PassManager([FuseAttention()]).run(read(text)).near_misses
    assert refused or any(node.op_type == "Attention" for node in result.graph)
    assert not any("mask" not in miss.reason for miss in refused)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(models(families=("matmul", "transpose", "binary", "reshape", "unsqueeze", "unary")))
def test_property_of_other_graphs(model: ir.Model) -> None:
    check_pass(FuseAttention(), model)
