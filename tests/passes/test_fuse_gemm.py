from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.fuse_gemm import FuseGemm
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays


def graph(nodes: str, inputs: str = "float[N,2] x", outputs: str = "float[N,3] y", more: str = "") -> str:
    return f"""g ({inputs}) => ({outputs}) <float[2,3] w = {{1,2,3,4,5,6}}, float[3] b = {{7,8,9}},
        float[1,3] row = {{7,8,9}}, float one = {{3}}, float[1,1,3] deep = {{7,8,9}}{more}> {{ {nodes} }}"""


@pytest.mark.parametrize("summand", ["b", "row", "one"])
def test_sum(summand: str) -> None:
    assert_becomes(FuseGemm(), graph(f"p = MatMul(x, w) y = Add(p, {summand})"), graph(f"y = Gemm(x, w, {summand})"))
    assert_becomes(FuseGemm(), graph(f"p = MatMul(x, w) y = Add({summand}, p)"), graph(f"y = Gemm(x, w, {summand})"))


def test_a_summand_that_is_not_constant() -> None:
    inputs = "float[N,2] x, float[N,3] z"
    assert_becomes(FuseGemm(), graph("p = MatMul(x, w) y = Add(p, z)", inputs), graph("y = Gemm(x, w, z)", inputs))


def test_transposes() -> None:
    inputs = "float[2,N] x, float[3,2] v"
    assert_becomes(
        FuseGemm(),
        graph("a = Transpose(x) c = Transpose<perm = [1,0]>(v) p = MatMul(a, c) y = Add(p, b)", inputs),
        graph("y = Gemm<transA = 1, transB = 1>(x, v, b)", inputs),
    )
    assert_becomes(
        FuseGemm(),
        graph("a = Transpose(x) y = Gemm<transA = 1>(a, w)", "float[N,2] x"),
        graph("y = Gemm(x, w)", "float[N,2] x"),
    )


def test_everywhere() -> None:
    text = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] b = {5,6}> {
        p = MatMul(x, w) y = Add(p, b) }"""
    assert_becomes_everywhere(FuseGemm(), text, "Gemm")


@pytest.mark.parametrize(
    "text",
    [
        graph("p = MatMul(x, w) y = Add(p, b)", "float[B,N,2] x", "float[B,N,3] y"),  # more axes
        graph("p = MatMul(x, w) y = Add(p, b)", "float[2] x", "float[3] y"),  # fewer
        graph("p = MatMul(x, w) y = Add(p, deep)", outputs="float[1,N,3] y"),  # the summand has more
        graph("p = MatMul(x, w) y = Add(p, z)", "float[1,2] x, float[N,3] z"),  # stretches the product
        graph("p = MatMul(x, w) q = Add(p, b) y = Sub(p, q)"),  # another user
        graph("p = MatMul(x, w) y = Add(p, b)", outputs="float[N,3] y, float[N,3] p"),
        graph("p = MatMul(x, w) y = Add(p, p)"),
        graph("a = Transpose<perm = [0,1]>(x) y = Gemm(a, w, b)"),
        graph("a = Transpose(x) c = Gemm(a, w, b) e = MatMul(a, w) y = Sub(c, e)", "float[2,2] x", "float[2,3] y"),
        """g (int32[N,2] x) => (int32[N,2] y) <int32[2,2] w = {1,2,3,4}, int32[2] b = {5,6}> {
            p = MatMul(x, w) y = Add(p, b) }""",
    ],
)
def test_stays(text: str) -> None:
    assert_stays(FuseGemm(), text)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("matmul", "gemm", "transpose", "neutral", "unary", "reshape")))
def test_property(model: ir.Model) -> None:
    check_pass(FuseGemm(), model)
