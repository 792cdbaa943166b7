from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.reference import run_reference
from optimizer.testing import check_pass, models
from passes.fold_affine import FoldAffine
from tests.passes.transform import assert_becomes, assert_stays, read

CONV = """g (float[N,1,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {1,2}, float[2] c = {3,4}, OPERAND> {
    a = Conv(x, w, c) NODE }"""


def conv(operand: str, node: str) -> str:
    return CONV.replace("OPERAND", operand).replace("NODE", node)


@pytest.mark.parametrize(
    ("operand", "node", "weight", "bias"),
    [
        ("float[2,1,1] k = {2,3}", "y = Mul(a, k)", "{2,6}", "{6,12}"),
        ("float[2,1,1] k = {2,3}", "y = Mul(k, a)", "{2,6}", "{6,12}"),
        ("float[1,2,1,1] k = {2,3}", "y = Mul(a, k)", "{2,6}", "{6,12}"),
        ("float k = {2}", "y = Mul(a, k)", "{2,4}", "{6,8}"),
        ("float[1,1,1,1] k = {2}", "y = Mul(a, k)", "{2,4}", "{6,8}"),
        ("float[2,1,1] k = {2,4}", "y = Div(a, k)", "{0.5,0.5}", "{1.5,1}"),
        ("float[2,1,1] k = {2,3}", "y = Add(a, k)", "{1,2}", "{5,7}"),
        ("float[2,1,1] k = {2,3}", "y = Add(k, a)", "{1,2}", "{5,7}"),
        ("float[2,1,1] k = {2,3}", "y = Sub(a, k)", "{1,2}", "{1,1}"),
        ("float[2,1,1] k = {2,3}", "y = Sub(k, a)", "{-1,-2}", "{-1,-1}"),
    ],
)
def test_conv(operand: str, node: str, weight: str, bias: str) -> None:
    assert_becomes(
        FoldAffine(),
        conv(operand, node),
        f"""g (float[N,1,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {weight}, float[2] c = {bias}> {{
            y = Conv(x, w, c) }}""",
    )


def test_a_chain_folds_in_one_run() -> None:
    assert_becomes(
        FoldAffine(),
        conv("float[2,1,1] k = {2,3}, float j = {1}", "b = Mul(a, k) y = Add(b, j)"),
        """g (float[N,1,4,4] x) => (float[N,2,4,4] y) <float[2,1,1,1] w = {2,6}, float[2] c = {7,13}> {
            y = Conv(x, w, c) }""",
    )


def test_gemm_and_its_scalar_bias() -> None:
    assert_becomes(
        FoldAffine(),
        """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float c = {5}, float[1,2] k = {2,3}> {
            a = Gemm<transB = 1>(x, w, c) y = Mul(a, k) }""",
        """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {2,4,9,12}, float[2] c = {10,15}> {
            y = Gemm<transB = 1>(x, w, c) }""",
    )


def test_matmul_takes_a_factor() -> None:
    assert_becomes(
        FoldAffine(),
        """g (float[N,S,2] x) => (float[N,S,2] y) <float[2,2] w = {1,2,3,4}, float[2] k = {2,3}> {
            a = MatMul(x, w) y = Mul(a, k) }""",
        "g (float[N,S,2] x) => (float[N,S,2] y) <float[2,2] w = {2,6,6,12}> { y = MatMul(x, w) }",
    )


def test_matmul_takes_no_shift() -> None:
    assert_stays(
        FoldAffine(),
        """g (float[N,S,2] x) => (float[N,S,2] y) <float[2,2] w = {1,2,3,4}, float[2] k = {2,3}> {
            a = MatMul(x, w) y = Add(a, k) }""",
    )


def test_the_old_weight_is_freed_at_once() -> None:
    model = read(
        "g (float[N,64] x) => (float[N,64] y) <float w = {0}, float k = {2}> { a = MatMul(x, w) y = Mul(a, k) }"
    )
    weight = model.graph.initializers["w"]
    weight.const_value, weight.shape = ir.tensor(np.ones((64, 64), np.float32)), ir.Shape([64, 64])
    FoldAffine()(model)
    assert weight not in model.graph.initializers.values()


def test_adding_zeros_after_a_matmul_stays() -> None:
    """It turns -0.0 into 0.0."""
    text = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {-1,0,0,-1}, float[2] k = {0,0}> {
        a = MatMul(x, w) y = Add(a, k) }"""
    model = read(text)
    FoldAffine()(model)
    (y,) = run_reference(model, [np.zeros((1, 2), np.float32)])
    assert not np.signbit(y).any()


@pytest.mark.parametrize(
    "text",
    [
        conv("float[4] k = {1,2,3,4}", "y = Mul(a, k)"),  # along another axis
        conv("float[2,1,4] k = {1,2,3,4,5,6,7,8}", "y = Mul(a, k)"),  # along two axes
        conv("float[1,1,1,1,1] k = {2}", "b = Mul(a, k) s = Shape(a) y = Reshape(b, s)"),  # another axis in front
        conv("float[2,1,1] k = {2,0}", "y = Div(a, k)"),  # by zero
        conv("float k = {2}", "y = Div(k, a)"),  # not linear
        conv("float[2,1,1] k = {2,inf}", "y = Mul(a, k)"),
        conv("float[2,1,1] k = {2,3e38}", "b = Mul(a, k) y = Neg(b)"),  # overflows
        conv("float k = {2}", "y = Mul(a, a)"),  # squares
        conv("float k = {2}", "b = Mul(a, k) y = Add(a, b)"),  # another user of the convolution
        conv("float k = {2}", "b = Mul(a, k) d = Conv(x, w) y = Add(b, d)"),  # another user of the weight
        conv("float k = {2}", "b = Relu(a) y = Mul(b, k)"),
        """g (float[N,2] x, float[2] k) => (float[N,2] y) <float[2,2] w = {1,2,3,4}> {
            a = MatMul(x, w) y = Mul(a, k) }""",
        """g (float[N,2] x, float[2,2] w) => (float[N,2] y) <float[2] k = {1,2}> {
            a = MatMul(x, w) y = Mul(a, k) }""",
        """g (int32[N,2] x) => (int32[N,2] y) <int32[2,2] w = {1,2,3,4}, int32[2] k = {1,2}> {
            a = MatMul(x, w) y = Mul(a, k) }""",
        # a vector times a matrix has one axis, the constant would give it a second
        """g (float[2] x) => (float[1,2] y) <float[2,2] w = {1,2,3,4}, float[1,2] k = {1,2}> {
            a = MatMul(x, w) y = Mul(a, k) }""",
        # one channel, stretched
        """g (float[N,2] x) => (float[N,3] y) <float[2,1] w = {1,2}, float[3] k = {1,2,3}> {
            a = MatMul(x, w) y = Mul(a, k) }""",
        # a bias for each row
        """g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1,2,3,4}, float[2,1] c = {1,2}, float k = {3}> {
            a = Gemm(x, w, c) y = Mul(a, k) }""",
        # a bias that is not constant
        """g (float[2,2] x, float[2] c) => (float[2,2] y) <float[2,2] w = {1,2,3,4}, float k = {3}> {
            a = Gemm(x, w, c) y = Mul(a, k) }""",
    ],
)
def test_stays(text: str) -> None:
    assert not FoldAffine()(read(text)).modified


NORM = """g (float[N,2,3,3] x) => (float[N,2,3,3] y) <float[2] s = {S}, float[2] b = {B}, float[2] m = {1,2},
    float[2] v = {3,4}, float[2,1,1] k = {2,3}, float[3] row = {1,2,3}> { NODES }"""


def norm(nodes: str, scale: str = "1,2", bias: str = "3,4") -> str:
    return NORM.replace("S}", scale + "}", 1).replace("B}", bias + "}", 1).replace("NODES", nodes)


@pytest.mark.parametrize(
    ("node", "scale", "bias"),
    [("Mul(a, k)", "2,6", "6,12"), ("Add(k, a)", "1,2", "5,7"), ("Sub(k, a)", "-1,-2", "-1,-1")],
)
def test_batch_normalization(node: str, scale: str, bias: str) -> None:
    before = norm(f"a = BatchNormalization(x, s, b, m, v) y = {node}")
    assert_becomes(FoldAffine(), before, norm("y = BatchNormalization(x, s, b, m, v)", scale, bias))


@pytest.mark.parametrize(
    "nodes",
    [
        "a = BatchNormalization(x, s, b, m, v) y = Mul(a, row)",  # along another axis
        "a = BatchNormalization(x, s, b, m, v) c = Mul(a, k) y = Sub(a, c)",  # another user
        "t = Neg(s) u = Exp(t) a = BatchNormalization(x, u, b, m, v) y = Mul(a, k)",  # the scale is not constant
        "a, n, w = BatchNormalization<training_mode = 1>(x, s, b, m, v) y = Mul(a, k)",
    ],
)
def test_batch_normalization_stays(nodes: str) -> None:
    assert not FoldAffine()(read(norm(nodes))).modified


def test_a_convolution_that_is_an_output_stays() -> None:
    assert_stays(
        FoldAffine(),
        conv("float k = {2}", "y = Mul(a, k)").replace("(float[N,2,4,4] y)", "(float[N,2,4,4] y, float[N,2,4,4] a)"),
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("conv", "gemm", "matmul", "unary", "neutral", "unsqueeze")))
def test_property(model: ir.Model) -> None:
    check_pass(FoldAffine(), model)
