"""Projections of queries, keys and values, before and after."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.pass_manager import PassManager
from optimizer.reference import run_reference
from optimizer.testing import check_pass, models
from passes.merge_qkv import MergeQkv
from passes.remove_unused import RemoveUnused
from tests.passes.transform import assert_becomes, assert_stays, read

WEIGHTS = """float[2,4] wq = {1,2,3,4,5,6,7,8}, float[2,4] wk = {2,3,4,5,6,7,8,9}, float[2,2] wv = {1,-1,2,-2},
    float[4] bq = {1,2,3,4}, float[4] bk = {5,6,7,8}, float[2] bv = {9,10}"""
PRODUCTS = "q1 = MatMul(x, wq) k1 = MatMul(x, wk) v1 = MatMul(x, wv)"
SUMS = "q = Add(q1, bq) k = Add(bk, k1) v = Add(v1, bv)"
ATTENTION = "y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v)"


def graph(*parts: str, weights: str = WEIGHTS, x: str = "float[B,S,2] x", more: str = "") -> str:
    return f"g ({x}) => (float[B,S,2] y{more}) <{weights}> {{ {' '.join(parts)} }}"


def kinds(text: str) -> list[str]:
    result = check_pass(MergeQkv(), read(text))
    RemoveUnused()(result)
    return [node.op_type for node in result.graph]


def reasons(text: str) -> list[str]:
    assert_stays(MergeQkv(), text)
    return [miss.reason for miss in PassManager([MergeQkv()]).run(read(text)).near_misses]


def test_all_three() -> None:
    assert_becomes(
        MergeQkv(),
        graph(PRODUCTS, SUMS, ATTENTION),
        """g (float[B,S,2] x) => (float[B,S,2] y) <
            float[2,10] w = {1,2,3,4,2,3,4,5,1,-1,5,6,7,8,6,7,8,9,2,-2},
            float[10] b = {1,2,3,4,5,6,7,8,9,10}, int64[3] sizes = {4,4,2}> {
            p = MatMul(x, w) s = Add(p, b) q, k, v = Split<axis = -1>(s, sizes)
            y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) }""",
    )


def test_without_biases() -> None:
    assert kinds(graph(PRODUCTS.replace("q1", "q").replace("k1", "k").replace("v1", "v"), ATTENTION)) == [
        "MatMul",
        "Split",
        "Attention",
    ]


def test_a_bias_that_is_missing_is_minus_zero() -> None:
    text = graph(PRODUCTS.replace("k1", "k"), "q = Add(q1, bq) v = Add(v1, bv)", ATTENTION, more=", float[B,S,4] k")
    assert kinds(text) == ["MatMul", "Add", "Split", "Attention"]
    model = read(text)
    model.graph.initializers["wk"].const_value = ir.tensor(np.full((2, 4), -1.0, np.float32), name="wk")
    PassManager([MergeQkv()]).run(model)
    _, k = run_reference(model, [np.array([[[0.0, 0.0]]], np.float32)])
    assert (k == 0).all()
    expected = np.array([[[0.0, 0.0]]], np.float32) @ np.full((2, 4), -1.0, np.float32)
    np.testing.assert_array_equal(np.signbit(k), np.signbit(expected))


def test_keys_and_values_of_another_sequence() -> None:
    text = graph(
        PRODUCTS.replace("MatMul(x, wq)", "MatMul(z, wq)"), SUMS, ATTENTION, x="float[B,S,2] x, float[B,S,2] z"
    )
    assert kinds(text) == ["MatMul", "MatMul", "Add", "Split", "Add", "Attention"]


def test_keys_and_values_without_biases_gain_nothing() -> None:
    text = graph("q = MatMul(z, wq) k = MatMul(x, wk) v = MatMul(x, wv)", ATTENTION, x="float[B,S,2] x, float[B,S,2] z")
    assert_stays(MergeQkv(), text)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    shape = "float[4,2] wq = {1,2,3,4,5,6,7,8}, float[4,2] wk = {2,3,4,5,6,7,8,9}, float[2,2] wv = {1,-1,2,-2}"
    weights = WEIGHTS if not transposed else shape + WEIGHTS[WEIGHTS.index(",\n") :]
    text = f"""g (float[N,2] x) => (float[1,N,2] y) <{weights}, int64[1] first = {{0}}> {{
        q1 = Gemm<transB = {transposed}>(x, wq, bq) k1 = Gemm<transB = {transposed}>(x, wk)
        v1 = Gemm<transB = {transposed}>(x, wv, bv) q = Unsqueeze(q1, first) k = Unsqueeze(k1, first)
        v = Unsqueeze(v1, first) {ATTENTION} }}"""
    assert kinds(text) == ["Gemm", "Split", *["Unsqueeze"] * 3, "Attention"]


def test_through_a_rotation() -> None:
    text = graph(
        PRODUCTS.replace("v1", "v").replace("wv)", "wk2)"),
        "q = RotaryEmbedding<num_heads = 2>(q1, c, s) k = RotaryEmbedding<num_heads = 2>(k1, c, s)",
        ATTENTION,
        weights=WEIGHTS.replace("float[2,2] wv = {1,-1,2,-2}", "float[2,4] wk2 = {1,3,1,3,1,3,1,3}"),
        x="float[B,S,2] x, float[B,S,1] c, float[B,S,1] s",
    ).replace("(float[B,S,2] y)", "(float[B,S,4] y)")
    assert kinds(text) == ["MatMul", "Split", "RotaryEmbedding", "RotaryEmbedding", "Attention"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            graph(PRODUCTS, SUMS, ATTENTION, x="float[B,S,2] x, float[2,4] wk").replace(
                "float[2,4] wk = {2,3,4,5,6,7,8,9}, ", ""
            ),
            "the key is projected by 'wk', which is not constant",
        ),
        (
            graph("q1 = MatMul(x, wq) k1 = MatMul(x, wq) v1 = MatMul(x, wv)", SUMS, ATTENTION),
            "the query is projected by 'wq', which is used elsewhere too",
        ),
    ],
)
def test_why_not(text: str, why: str) -> None:
    result = PassManager([MergeQkv()]).run(read(text))
    assert why in [miss.reason for miss in result.near_misses]
    check_pass(MergeQkv(), read(text))


def test_a_product_that_is_used_elsewhere_stays() -> None:
    text = graph(PRODUCTS, SUMS, ATTENTION, more=", float[B,S,4] q1, float[B,S,4] k1, float[B,S,2] v1")
    assert reasons(text) == []


def test_a_result_that_is_used_elsewhere_is_a_part_as_well() -> None:
    text = graph(PRODUCTS, SUMS, ATTENTION, more=", float[B,S,4] q, float[B,S,4] k, float[B,S,2] v")
    assert kinds(text) == ["MatMul", "Add", "Split", "Attention"]


@pytest.mark.parametrize("bias", ["float[1,1,4] bq = {1,2,3,4}", "float[1] bq = {1}"])
def test_biases(bias: str) -> None:
    text = graph(PRODUCTS, SUMS, ATTENTION, weights=WEIGHTS.replace("float[4] bq = {1,2,3,4}", bias))
    if "1,1,4" in bias:
        assert kinds(text) == ["MatMul", "Add", "Split", "Attention"]
        return
    result = PassManager([MergeQkv()]).run(read(text))
    assert [miss.reason for miss in result.near_misses] == [
        "the query is shifted by 'bq', which is not a constant vector"
    ]


def test_no_attention_no_merge() -> None:
    text = "g (float[N,2] x) => (float[N,2] y) <float[2,2] a = {1,2,3,4}, float[2,2] b = {5,6,7,8}> {"
    assert_stays(MergeQkv(), text + " c = MatMul(x, a) d = MatMul(x, b) y = Add(c, d) }")


def test_the_old_weights_are_freed_at_once() -> None:
    model = read(graph(PRODUCTS.replace("1 =", " ="), ATTENTION).replace("B,S,2", "B,S,64"))
    for name in ("wq", "wk", "wv"):
        weight = model.graph.initializers[name]
        weight.const_value, weight.shape = ir.tensor(np.ones((64, 64), np.float32), name=name), ir.Shape([64, 64])
    PassManager([MergeQkv()]).run(model)
    assert not {"wq", "wk", "wv"} & set(model.graph.initializers)


GATHERED = """g (float[S,B,24] x) => (float[B,S,8] y) <int64[4] apart = {0,0,3,8}, int64 zero = {0}, int64 one = {1},
    int64 two = {2}, int64[3] three = {0,0,8}> {
    a = Reshape(x, apart) b = Transpose<perm = [2,1,0,3]>(a) q = Gather(b, QUERY) k = Gather(b, one) v = Gather(b, two)
    y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) }"""


def test_three_that_are_gathered_out_of_one_are_split() -> None:
    assert kinds(GATHERED.replace("QUERY", "zero")) == ["Transpose", "Split", "Attention"]


def test_the_same_one_twice_stays() -> None:
    assert_stays(MergeQkv(), GATHERED.replace("QUERY", "one"))


def test_keys_and_values_that_are_gathered_out_of_one() -> None:
    text = """g (float[B,S,8] q, float[B,S,16] x) => (float[B,S,8] y) <int64[4] apart = {0,0,2,8}, int64 zero = {0},
        int64 one = {1}> {
        a = Reshape(x, apart) k = Gather<axis = 2>(a, one) v = Gather<axis = -2>(a, zero)
        y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) }"""
    assert_becomes(
        MergeQkv(),
        text,
        """g (float[B,S,8] q, float[B,S,16] x) => (float[B,S,8] y) <int64[2] sizes = {8,8}> {
            v, k = Split<axis = -1>(x, sizes) y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) }""",
    )


@settings(max_examples=15, derandomize=True, deadline=None)
@given(models(families=("matmul", "gemm", "binary", "unary")))
def test_property(model: ir.Model) -> None:
    check_pass(MergeQkv(), model)
