from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.unflatten_matmul import UnflattenMatmul
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays


def graph(nodes: str, inputs: str = "float[N,S,2] x", outputs: str = "float[N,S,3] y") -> str:
    return f"""g ({inputs}) => ({outputs}) <float[2,3] w = {{1,2,3,4,5,6}}, float[3,2] v = {{1,4,2,5,3,6}},
        float[3] b = {{7,8,9}}, float[1,3] row = {{7,8,9}}, int64[2] flat = {{-1,2}}, int64[1] width = {{3}}> {{
            {nodes} }}"""


SHAPE = "d = Shape<end = -1>(x) s = Concat<axis = 0>(d, width)"


@pytest.mark.parametrize(
    ("product", "after"),
    [
        ("Gemm(f, w, b)", "p = MatMul(x, w) y = Add(p, b)"),
        ("Gemm(f, w, row)", "p = MatMul(x, w) y = Add(p, row)"),
        ("Gemm<transB = 1>(f, v, b)", "p = MatMul(x, w) y = Add(p, b)"),
        ("Gemm(f, w)", "y = MatMul(x, w)"),
        ("MatMul(f, w)", "y = MatMul(x, w)"),
    ],
)
@pytest.mark.parametrize("flatten", ["Reshape(x, flat)", "Flatten<axis = 2>(x)"])
def test_rows(product: str, after: str, flatten: str) -> None:
    assert_becomes(UnflattenMatmul(), graph(f"f = {flatten} p = {product} {SHAPE} y = Reshape(p, s)"), graph(after))


def test_everywhere() -> None:
    text = """g (float[2,3,2] x) => (float[2,3,2] y) <float[2,2] w = {1,2,3,4}, float[2] b = {5,6}, int64[2] f = {-1,2},
        int64[3] s = {2,3,2}> { a = Reshape(x, f) p = Gemm(a, w, b) y = Reshape(p, s) }"""
    assert_becomes_everywhere(UnflattenMatmul(), text, "Add", "MatMul")


PAIR = "float[N,S,2] x, "


@pytest.mark.parametrize(
    "text",
    [
        graph(
            f"f = Reshape(x, flat) p = Gemm(f, w, b) {SHAPE} y = Reshape(p, s)", outputs="float[N,S,3] y, float[M,3] p"
        ),
        graph(f"f = Reshape(x, flat) p = Gemm(f, w, z) {SHAPE} y = Reshape(p, s)", PAIR + "float[M,3] z"),  # many rows
        graph(f"f = Reshape(x, flat) p = Gemm<alpha = 2.0>(f, w, b) {SHAPE} y = Reshape(p, s)"),
        graph(f"f = Reshape(x, flat) p = Gemm<beta = 2.0>(f, w, b) {SHAPE} y = Reshape(p, s)"),
        graph(f"f = Reshape(x, flat) p = Gemm<transB = 1>(f, z, b) {SHAPE} y = Reshape(p, s)", PAIR + "float[3,2] z"),
        """g (float[2,3,4] x) => (float[3,2,3] y) <float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}, int64[2] f = {-1,4},
            int64[3] s = {3,2,3}> { a = Reshape(x, f) p = MatMul(a, w) y = Reshape(p, s) }""",  # other rows
        """g (float[2,4] x) => (float[2,2,3] y) <float[2,3] w = {1,2,3,4,5,6}, int64[2] f = {-1,2},
            int64[3] s = {2,2,3}> { a = Reshape(x, f) p = MatMul(a, w) y = Reshape(p, s) }""",  # not the last axis
    ],
)
def test_stays(text: str) -> None:
    assert_stays(UnflattenMatmul(), text)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("matmul", "gemm", "reshape", "unsqueeze", "unary")))
def test_property(model: ir.Model) -> None:
    check_pass(UnflattenMatmul(), model)
