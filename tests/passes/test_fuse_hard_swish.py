from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir.near_miss import RewriteResult
from optimizer.testing import check_pass, models
from passes.fuse_hard_swish import FuseHardSwish
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read

CLIP = "a = Add(x, three) c = Clip(a, zero, six)"


def graph(nodes: str, outputs: str = "float[N,4] y") -> str:
    return f"""g (float[N,4] x) => ({outputs}) <float three = {{3}}, float zero = {{0}}, float six = {{6}},
        float two = {{2}}, float sixth = {{0.16666667}}, float half = {{0.5}}, float[4] row = {{6,6,6,6}}> {{
            {nodes} }}"""


@pytest.mark.parametrize(
    "nodes",
    [
        f"{CLIP} m = Mul(x, c) y = Div(m, six)",
        f"{CLIP} m = Mul(c, x) y = Mul(sixth, m)",
        f"{CLIP} m = Div(c, six) y = Mul(x, m)",
        f"{CLIP} m = Mul(c, sixth) y = Mul(m, x)",
        f"{CLIP} m = Div(x, six) y = Mul(c, m)",
        "h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(x, h)",
        "h = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) y = Mul(h, x)",
    ],
)
def test_hard_swish(nodes: str) -> None:
    assert_becomes(FuseHardSwish(), graph(nodes), graph("y = HardSwish(x)"))


def test_hard_sigmoid() -> None:
    wanted = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]>'
        "g (float[N,4] x) => (float[N,4] y) { y = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) }"
    )
    for nodes in (f"{CLIP} y = Div(c, six)", f"{CLIP} y = Mul(sixth, c)"):
        (node,) = check_pass(FuseHardSwish(), read(graph(nodes))).graph
        for name, attribute in wanted.graph[0].attributes.items():
            assert node.attributes[name].as_float() == pytest.approx(attribute.as_float(), rel=1e-6)
    (node,) = check_pass(FuseHardSwish(), read(graph("a = Mul(x, two) c = Clip(a, zero, half) y = Mul(c, two)"))).graph
    assert (node.attributes["alpha"].as_float(), node.attributes["beta"].as_float()) == (4, 0)


def test_everywhere() -> None:
    assert_becomes_everywhere(FuseHardSwish(), graph(f"{CLIP} m = Mul(x, c) y = Div(m, six)"), "HardSwish")


def test_another_need_of_the_clip_is_a_near_miss() -> None:
    result = FuseHardSwish()(read(graph(f"{CLIP} m = Mul(x, c) y = Div(m, six)", "float[N,4] y, float[N,4] c")))
    assert isinstance(result, RewriteResult)
    assert not result.modified
    assert [miss.reason for miss in result.near_misses] == [
        "'c' is an output of the graph, so Clip would be computed twice"
    ]


@pytest.mark.parametrize(
    "nodes",
    [
        f"{CLIP} m = Mul(x, c) y = Div(m, three)",  # another factor
        f"{CLIP} m = Mul(x, c) y = Div(m, row)",  # not one number
        "a = Add(x, two) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",  # another slope
        "a = Add(x, three) c = Clip(a, two, six) m = Mul(x, c) y = Div(m, six)",  # not from zero
        "a = Add(x, three) c = Clip(a, zero) m = Mul(x, c) y = Div(m, six)",  # without an end
        "r = Relu(x) a = Add(x, three) c = Clip(a, zero, six) m = Mul(r, c) y = Div(m, six)",  # of something else
        "h = HardSigmoid(x) y = Mul(x, h)",
    ],
)
def test_stays(nodes: str) -> None:
    assert_stays(FuseHardSwish(), graph(nodes))


def test_before_opset_14_it_stays() -> None:
    assert_stays(FuseHardSwish(), graph(f"{CLIP} m = Mul(x, c) y = Div(m, six)"), opset=13)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("unary", "binary", "neutral", "constants")))
def test_property(model: ir.Model) -> None:
    check_pass(FuseHardSwish(), model)
