from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir import provenance
from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass, models
from passes.fold_batch_norm import FoldBatchNorm
from tests.passes.transform import assert_becomes, assert_stays, read

STATISTICS = "float[2] s = {2,3}, float[2] b = {1,1}, float[2] m = {1,2}, float[2] v = {4,1}"
"""Epsilon being 0, the factors are `2 / sqrt(4) = 1` and `3 / sqrt(1) = 3`, the shifts `1 - 1 * 1` and `1 - 2 * 3`."""
NORM = "BatchNormalization<epsilon = 0.0>"


def test_conv_with_a_bias() -> None:
    assert_becomes(
        FoldBatchNorm(),
        f"""g (float[N,1,H,W] x) => (float[N,2,H,W] y)
        <float[2,1,1,1] w = {{1,2}}, float[2] c = {{1,2}}, {STATISTICS}> {{
            a = Conv<group = 1>(x, w, c) y = {NORM}(a, s, b, m, v) }}""",
        """g (float[N,1,H,W] x) => (float[N,2,H,W] y) <float[2,1,1,1] w = {1,6}, float[2] c = {1,1}> {
            y = Conv<group = 1>(x, w, c) }""",
    )


def test_conv_without_a_bias_gets_one() -> None:
    assert_becomes(
        FoldBatchNorm(),
        f"""g (float[N,1,H,W] x) => (float[N,2,H,W] y) <float[2,1,1,1] w = {{1,2}}, {STATISTICS}> {{
            a = Conv(x, w) y = {NORM}(a, s, b, m, v) }}""",
        """g (float[N,1,H,W] x) => (float[N,2,H,W] y) <float[2,1,1,1] w = {1,6}, float[2] c = {0,-5}> {
            y = Conv(x, w, c) }""",
    )


def test_grouped_conv_transpose() -> None:
    """The weight is [I, O/G, ...]: the channels of the output go through the groups."""
    assert_becomes(
        FoldBatchNorm(),
        f"""g (float[N,4,H,W] x) => (float[N,2,H,W] y) <float[4,1,1,1] w = {{1,2,3,4}}, {STATISTICS}> {{
            a = ConvTranspose<group = 2>(x, w) y = {NORM}(a, s, b, m, v) }}""",
        """g (float[N,4,H,W] x) => (float[N,2,H,W] y) <float[4,1,1,1] w = {1,2,9,12}, float[2] c = {0,-5}> {
            y = ConvTranspose<group = 2>(x, w, c) }""",
    )


@pytest.mark.parametrize(("transposed", "folded"), [(0, "{1,6,3,12}"), (1, "{1,2,9,12}")])
def test_gemm_keeps_alpha_and_folds_beta(transposed: int, folded: str) -> None:
    assert_becomes(
        FoldBatchNorm(),
        f"""g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {{1,2,3,4}}, float[2] c = {{1,1}}, {STATISTICS}> {{
            a = Gemm<alpha = 0.5, beta = 2.0, transB = {transposed}>(x, w, c) y = {NORM}(a, s, b, m, v) }}""",
        f"""g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {folded}, float[2] c = {{2,1}}> {{
            y = Gemm<alpha = 0.5, transB = {transposed}>(x, w, c) }}""",
    )


def test_matmul_gets_an_add() -> None:
    assert_becomes(
        FoldBatchNorm(),
        f"""g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {{1,2,3,4}}, {STATISTICS}> {{
            a = MatMul(x, w) y = {NORM}(a, s, b, m, v) }}""",
        """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,6,3,12}, float[2] c = {0,-5}> {
            a = MatMul(x, w) y = Add(a, c) }""",
    )


def test_the_channels_of_a_stack_of_matrices_are_not_the_last_axis() -> None:
    assert_stays(
        FoldBatchNorm(),
        f"""g (float[N,2,2] x) => (float[N,2,2] y) <float[2,2] w = {{1,2,3,4}}, {STATISTICS}> {{
            a = MatMul(x, w) y = {NORM}(a, s, b, m, v) }}""",
    )


@pytest.mark.parametrize("opset", [7, 9, 14])
def test_every_opset(opset: int) -> None:
    assert_becomes(
        FoldBatchNorm(),
        f"""g (float[N,1,H,W] x) => (float[N,2,H,W] y) <float[2,1,1,1] w = {{1,2}}, {STATISTICS}> {{
            a = Conv(x, w) y = {NORM}(a, s, b, m, v) }}""",
        """g (float[N,1,H,W] x) => (float[N,2,H,W] y) <float[2,1,1,1] w = {1,6}, float[2] c = {0,-5}> {
            y = Conv(x, w, c) }""",
        opset=opset,
    )


CONV = f"""g (float[N,1,4,4] x INPUTS) => (float[N,2,4,4] y OUTPUTS) <float[2,1,1,1] w = {{1,2}}, {STATISTICS}> {{
    a = Conv(x, w) y = {NORM}(a, s, b, m, v) MORE }}"""


def conv(inputs: str = "", outputs: str = "", more: str = "") -> str:
    return CONV.replace("INPUTS", inputs).replace("OUTPUTS", outputs).replace("MORE", more)


@pytest.mark.parametrize(
    "text",
    [
        conv(outputs=", float[N,2,4,4] z", more="z = Neg(a)"),  # the convolution has another user
        conv(outputs=", float[N,2,4,4] a"),  # ... is an output
        conv(outputs=", float[N,2,4,4] z", more="z = Conv(x, w)"),  # the weight has another user
        conv(inputs=", float[2] m").replace("float[2] m = {1,2}, ", ""),  # a statistic is not constant
        conv(inputs=", float[2,1,1,1] w").replace("float[2,1,1,1] w = {1,2}, ", ""),  # the weight is not
        conv().replace("a = Conv(x, w)", "c = Conv(x, w) a = Relu(c)"),  # something stands in between
        conv().replace("v = {4,1}", "v = {4,-1}"),  # no square root
    ],
)
def test_stays(text: str) -> None:
    assert not FoldBatchNorm()(read(text)).modified


def test_training_stays() -> None:
    text = conv(outputs=", float[2] rm, float[2] rv").replace("y = B", "y, rm, rv = B")
    assert not FoldBatchNorm()(read(text.replace("epsilon = 0.0", "epsilon = 0.0, training_mode = 1"))).modified


def test_a_convolution_is_not_drawn_into_a_loop() -> None:
    model = read(f"""g (float[1,1,4,4] x, bool k) => (float[1,2,4,4] y) <float[2,1,1,1] w = {{1,2}}, {STATISTICS}> {{
        a = Conv(x, w) z = Constant<value_ints = [1,2,4,4]>() y = If (k) <
            then_branch = t () => (o) {{ o = {NORM}(a, s, b, m, v) }},
            else_branch = e () => (p) {{ p = ConstantOfShape(z) }}> }}""")
    assert not FoldBatchNorm()(model).modified


def test_a_number_that_would_overflow_stays() -> None:
    assert not FoldBatchNorm()(read(conv().replace("w = {1,2}", "w = {1,3e38}"))).modified


def test_the_new_node_stands_for_both() -> None:
    model = read(conv().replace("a = Conv", "[conv1] a = Conv").replace("y = B", "[bn1] y = B"))
    PassManager([FoldBatchNorm()]).run(model)
    (node,) = model.graph
    assert set(provenance.origins(node)) == {"conv1", "bn1"}
    assert provenance.makers(node) == ("fold-batch-norm",)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("conv", "conv", "unary", "identity", "unsqueeze")))
def test_property(model: ir.Model) -> None:
    check_pass(FoldBatchNorm(), model)
