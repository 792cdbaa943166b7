"""Attention as it is written by hand and by exporters, before and after."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass
from passes.fuse_attention import FuseAttention
from passes.remove_unused import RemoveUnused
from tests.passes.transform import assert_becomes, assert_stays, read

Q, K, V = "float[B,4,S,8] q", "float[B,4,T,8] k", "float[B,4,T,8] v"
INTERFACE = f"g ({Q}, {K}, {V}EXTRA) => (float[B,4,S,8] y)"
EXPECTED = """g (float[B,4,S,8] q, float[B,4,T,8] k, float[B,4,T,8] v) => (float[B,4,S,8] y) {
    y = Attention<scale = SCALE>(q, k, v) }"""
CONSTANTS = "<float half = {0.5}, float two = {2}, float[1] quarter = {0.25}>"


def attention(
    scores: str, *, extra: str = "", constants: str = CONSTANTS, probabilities: str = "p = Softmax(s)"
) -> str:
    """`scores` gives `s` of the product `a`."""
    interface = INTERFACE.replace("EXTRA", f", {extra}" if extra else "")
    return f"""{interface} {constants} {{
        t = Transpose<perm = [0,1,3,2]>(k) a = MatMul(q, t) {scores} {probabilities} y = MatMul(p, v) }}"""


def fused(text: str) -> ir.Model:
    """The model after the pass, which kept its contract; without dead nodes."""
    result = check_pass(FuseAttention(), read(text))
    RemoveUnused()(result)
    return result


def reasons(text: str) -> list[str]:
    assert_stays(FuseAttention(), text)
    return [miss.reason for miss in PassManager([FuseAttention()]).run(read(text)).near_misses]


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ("s = Mul(a, half)", 0.5),
        ("s = Mul(half, a)", 0.5),
        ("s = Div(a, two)", 0.5),
        ("b = Mul(a, half) s = Div(b, quarter)", 2.0),
    ],
)
def test_the_scale_of_the_scores(scores: str, scale: float) -> None:
    assert_becomes(FuseAttention(), attention(scores), EXPECTED.replace("SCALE", str(scale)))
