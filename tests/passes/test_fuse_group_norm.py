from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir.near_miss import RewriteResult
from optimizer.testing import check_pass, models
from passes.fuse_group_norm import FuseGroupNorm
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read

CONSTANTS = """<float[2] ones = {1,1}, float[2] zeros = {0,0}, float[4] g = {1,2,3,4}, float[4] b = {5,6,7,8},
    float[4,1,1] g3 = {1,2,3,4}, float[1,4,1,1] b4 = {5,6,7,8}, float[6] one6 = {1,1,1,1,1,1}, float[2,9] one29 =
    {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}, int64[3] split = {0,2,-1}, int64[4] back = {0,4,3,3}>"""
SPLIT = "r = Reshape(x, split) "
INSTANCE = SPLIT + "n = InstanceNormalization<epsilon = 0.01>(r, ones, zeros) "
FUSED = """g (float[N,4,3,3] x) => (float[N,4,3,3] y) <float[4] g = {1,2,3,4}, float[4] b = {5,6,7,8}> {
    y = GroupNormalization<epsilon = 0.01, num_groups = 2>(x, g, b) }"""


def graph(nodes: str, outputs: str = "float[N,4,3,3] y", inputs: str = "float[N,4,3,3] x") -> str:
    return f"g ({inputs}) => ({outputs}) {CONSTANTS} {{ {nodes} }}"


@pytest.mark.parametrize("affine", ["m = Mul(s, g3) y = Add(m, b4)", "m = Mul(g3, s) y = Add(b4, m)"])
@pytest.mark.parametrize("back", ["s = Reshape(n, back)", "k = Shape(x) s = Reshape(n, k)"])
def test_as_torch_exports_it(affine: str, back: str) -> None:
    assert_becomes(FuseGroupNorm(), graph(f"{INSTANCE} {back} {affine}"), FUSED)


def test_from_a_layer_normalization_without_scale_and_bias() -> None:
    text = f"""g (float[N,4,3] x) => (float[N,4,3] y) <float[2,3] ones = {{1,1,1,1,1,1}}, int64[4] split = {{0,2,2,3}},
        int64[3] back = {{0,4,3}}> {{ {SPLIT} n = LayerNormalization<axis = 2>(r, ones) y = Reshape(n, back) }}"""
    assert_becomes(
        FuseGroupNorm(),
        text,
        """g (float[N,4,3] x) => (float[N,4,3] y) <float[4] g = {1,1,1,1}, float[4] b = {0,0,0,0}> {
            y = GroupNormalization<epsilon = 1e-5, num_groups = 2>(x, g, b) }""",
    )
    assert_stays(FuseGroupNorm(), text, opset=20)


def test_everywhere() -> None:
    assert_becomes_everywhere(FuseGroupNorm(), graph(f"{INSTANCE} y = Reshape(n, back)"), "GroupNormalization")


def reasons(text: str) -> list[str]:
    result = FuseGroupNorm()(read(text))
    assert isinstance(result, RewriteResult)
    assert not result.modified
    return [miss.reason for miss in result.near_misses]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            graph(f"{SPLIT} n = InstanceNormalization(r, ones, ones) y = Reshape(n, back)"),
            "scales or shifts whole groups",
        ),
        (graph(f"{SPLIT} n = InstanceNormalization(r, zeros, zeros) y = Reshape(n, back)"), "scales or shifts"),
        (graph(f"{INSTANCE} y = Reshape(n, back) z = Relu(n)", "float[N,4,3,3] y, float[N,2,18] z"), "'n' is needed"),
        (graph(f"{INSTANCE} y = Reshape(n, back)", "float[N,4,3,3] y, float[N,2,18] n"), "'n' is needed"),
        (
            graph(f"{INSTANCE} k = Shape(x) y = Reshape(n, k)", "float[N,C,3,3] y", "float[N,C,3,3] x"),
            "the number of channels of 'x' or of groups is not known",
        ),
        (
            graph(f"{INSTANCE} k = Shape(x) y = Reshape(n, k)", "float[N,3,2,3] y", "float[N,3,2,3] x"),
            "'r' is not made of 2 groups of channels of 'x'",
        ),
        (
            f"""g (float[N,4,3] x) => (float[N,4,3] y) <float[3] ones = {{1,1,1}}, int64[4] split = {{0,2,2,3}},
                int64[3] back = {{0,4,3}}> {{ {SPLIT}
                    n = LayerNormalization<axis = 3>(r, ones) y = Reshape(n, back) }}""",
            "LayerNormalization 'n' is not over all axes of a group",
        ),
    ],
)
def test_near_misses(text: str, reason: str) -> None:
    (found,) = reasons(text)
    assert reason in found


@pytest.mark.parametrize(
    "text",
    [
        graph("y = Relu(x)"),
        graph(f"{SPLIT} n = Relu(r) y = Reshape(n, back)"),
        graph(f"{INSTANCE} k = Concat<axis = 0>(back) s = Reshape(n, split) y = Reshape(s, k)"),  # to another shape
    ],
)
def test_something_else_is_no_near_miss(text: str) -> None:
    assert reasons(text) == []


@pytest.mark.parametrize(
    "nodes",
    [
        "n = GroupNormalization<num_groups = 2>(x, g, b) y = Mul(n, g3)",
        "n = GroupNormalization<num_groups = 2>(x, g, b) y = Add(n, g3)",
        "n = GroupNormalization<num_groups = 2>(x, g, zero) y = Mul(n, g3)",  # has a scale already
        "n = GroupNormalization<num_groups = 2>(x, one, zero) y = Mul(n, x)",  # not constant
        "n = GroupNormalization<num_groups = 2>(x, one, zero) y = Mul(n, row)",  # along another axis
        "n = GroupNormalization<num_groups = 2>(x, one, zero) y = Mul(n, n)",
    ],
)
def test_scale_and_bias_stay(nodes: str) -> None:
    more = CONSTANTS[:-1] + ", float[4] one = {1,1,1,1}, float[4] zero = {0,0,0,0}, float[3] row = {1,2,3}>"
    assert_stays(FuseGroupNorm(), graph(nodes).replace(CONSTANTS, more))


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("reshape", "conv", "neutral")))
def test_property(model: ir.Model) -> None:
    check_pass(FuseGroupNorm(), model)
