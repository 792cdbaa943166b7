from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.fold_pads import FoldPads
from tests.passes.transform import assert_becomes, assert_stays, read

PADS = "int64[8] p = {0,0,1,2,0,0,3,4}"
WEIGHT = "float[2,1,1,1] w = {1,2}"
SHAPES = "(float[N,1,H,W] x) => (float[N,2,A,B] y)"


def graph(pad: str = "Pad(x, p)", conv: str = "Conv(a, w)", constants: str = PADS, more: str = "") -> str:
    return f"g {SHAPES} <{constants}, {WEIGHT}> {{ a = {pad} {more} y = {conv} }}"


def test_the_convolution_pads() -> None:
    assert_becomes(FoldPads(), graph(), f"g {SHAPES} <{WEIGHT}> {{ y = Conv<pads = [1,2,3,4]>(x, w) }}")


@pytest.mark.parametrize(
    ("conv", "pads"),
    [("Conv<pads = [1,1,1,1]>(a, w)", "[2,3,4,5]"), ('Conv<auto_pad = "VALID">(a, w)', "[1,2,3,4]")],
)
def test_what_it_pads_already_is_added(conv: str, pads: str) -> None:
    assert_becomes(FoldPads(), graph(conv=conv), f"g {SHAPES} <{WEIGHT}> {{ y = Conv<pads = {pads}>(x, w) }}")


def test_named_axes() -> None:
    text = graph("Pad(x, p, , k)", constants="int64[4] p = {1,2,3,4}, int64[2] k = {-1,2}")
    assert_becomes(FoldPads(), text, f"g {SHAPES} <{WEIGHT}> {{ y = Conv<pads = [2,1,4,3]>(x, w) }}")


def test_several_convolutions() -> None:
    assert_becomes(
        FoldPads(),
        graph(conv="Add(b, c)", more="b = Conv(a, w) c = Conv<group = 1>(a, w)", constants=PADS),
        f"""g {SHAPES} <{WEIGHT}> {{ b = Conv<pads = [1,2,3,4]>(x, w) c = Conv<group = 1, pads = [1,2,3,4]>(x, w)
            y = Add(b, c) }}""",
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(graph('Pad<mode = "edge">(x, p)'), id="not constant"),
        pytest.param(graph("Pad(x, p, f)", constants=f"{PADS}, float f = {{1}}"), id="not zeros"),
        pytest.param(graph(constants="int64[8] p = {0,0,1,2,0,0,-1,0}"), id="takes away"),
        pytest.param(graph(constants="int64[8] p = {1,0,0,0,0,0,0,0}"), id="pads images"),
        pytest.param(graph(conv='Conv<auto_pad = "SAME_UPPER">(a, w)'), id="sizes decide"),
        pytest.param(graph(conv="Add(b, c)", more="b = Conv(a, w) c = Relu(a)"), id="another reader"),
        pytest.param(
            f"g (float[3,1,1,1] x, float[1,1,8,8] z) => (float[1,3,A,B] y) <{PADS}> {{ a = Pad(x, p) y = Conv(z, a) }}",
            id="as a weight",
        ),
        pytest.param(
            f"g (float[N,1,H,W] x) => (float[N,2,A,B] y, float[N,1,C,D] a) <{PADS}, {WEIGHT}> "
            "{ a = Pad(x, p) y = Conv(a, w) }",
            id="an output",
        ),
        pytest.param(
            "g (float[1,1,W] x, bool c) => (float[1,2,A] y) <int64[6] p = {0,0,1,0,0,1}, float[2,1,1] w = {1,2}> {"
            "a = Pad(x, p) y = If(c) <then_branch = t () => (float[1,2,A] u) { u = Conv(a, w) }, "
            "else_branch = e () => (float[1,2,A] v) { v = Conv(a, w) }> }",
            id="in a subgraph",
        ),
    ],
)
def test_what_stays(text: str) -> None:
    assert_stays(FoldPads(), text)


@settings(max_examples=20, deadline=None)
@given(models())
def test_any_model_keeps_its_results(model: ir.Model) -> None:
    check_pass(FoldPads(), model)


def test_numbers_stay_the_same() -> None:
    model = read(graph().replace("float[N,1,H,W]", "float[2,1,5,6]").replace("[N,2,A,B]", "[2,2,9,12]"))
    check_pass(FoldPads(), model)


def test_how_much_is_not_known() -> None:
    text = "g (float[N,1,H,W] x, int64[8] p) => (float[N,2,A,B] y) <float[2,1,1,1] w = {1,2}> "
    assert not FoldPads()(read(text + "{ a = Pad(x, p) y = Conv(a, w) }")).modified
