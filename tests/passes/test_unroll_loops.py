from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir.walk import all_nodes
from optimizer.testing import check_pass, models
from passes.remove_unused import RemoveUnused
from passes.unroll_loops import UnrollLoops
from tests.passes.transform import assert_becomes, assert_stays, read


def loop(
    body: str,
    outputs: str = "y",
    declared: str = "float[N] y",
    inputs: str = "trips, go, x",
    results: str = "float[N] x1",
    more: str = "",
    inner: str = "",
    trips: int = 2,
) -> str:
    return f"""g (float[N] x{more}) => ({declared}) <int64 trips = {{{trips}}}, bool go = {{1}}, bool no = {{0}}> {{
        {outputs} = Loop({inputs}) <
            body = b (int64 i, bool c, float[N] s) => (bool d, {results}) {inner} {{ {body} }}> }}"""


TWO: dict[str, Any] = {"outputs": "y, z", "declared": "float[N] y, float[T,N] z", "results": "float[N] x1, float[N] z1"}


def test_carried_values() -> None:
    assert_becomes(
        UnrollLoops(),
        loop("d = Identity(c) t = Relu(s) x1 = Neg(t)"),
        "g (float[N] x) => (float[N] y) { a = Relu(x) b = Neg(a) e = Relu(b) y = Neg(e) }",
    )


def test_the_number_of_the_trip_and_the_condition() -> None:
    assert_becomes(
        UnrollLoops(),
        loop("d = Identity(c) f = Cast<to = 1>(i) k = Cast<to = 1>(c) h = Mul(f, k) x1 = Add(s, h)"),
        """g (float[N] x) => (float[N] y) <int64 z = {0}, int64 o = {1}, bool t = {1}, bool u = {1}> {
            f0 = Cast<to = 1>(z) k0 = Cast<to = 1>(t) h0 = Mul(f0, k0) a = Add(x, h0)
            f1 = Cast<to = 1>(o) k1 = Cast<to = 1>(u) h1 = Mul(f1, k1) y = Add(a, h1) }""",
    )


def test_scan_outputs_are_stacked() -> None:
    text = loop("d = Identity(c) x1 = Relu(s) z1 = Neg(s)", **TWO)
    result = check_pass(UnrollLoops(), read(text))
    RemoveUnused()(result)
    assert [node.op_type for node in result.graph] == ["Relu", "Neg", "Relu", "Neg", "Unsqueeze", "Unsqueeze", "Concat"]


def test_values_of_the_graph_around_and_weights_inside() -> None:
    text = loop("d = Constant<value = bool {1}>() a = Mul(s, w) x1 = Add(a, x)", inner="<float w = {2}>")
    result = check_pass(UnrollLoops(), read(text))
    assert "Loop" not in [node.op_type for node in result.graph]


def test_no_trip_at_all() -> None:
    wanted = "g (float[N] x) => (float[N] y) { y = Identity(x) }"
    assert_becomes(UnrollLoops(), loop("d = Identity(c) x1 = Relu(s)", trips=0), wanted)
    assert_becomes(UnrollLoops(), loop("d = Identity(c) x1 = Relu(s)", inputs="trips, no, x"), wanted)


def test_what_the_body_passes_on() -> None:
    text = loop("d = Identity(c) x1 = Identity(s)", trips=1)
    assert_becomes(UnrollLoops(), text, "g (float[N] x) => (float[N] y) { y = Identity(x) }")


def test_a_branch_inside_and_a_loop_inside() -> None:
    branch = """d = Identity(c) x1 = If(c) <then_branch = t () => (float[N] p) { p = Relu(s) },
        else_branch = e () => (float[N] q) { q = Neg(s) }>"""
    result = check_pass(UnrollLoops(), read(loop(branch)))
    assert [node.op_type for node in all_nodes(result)].count("If") == 2
    inside = """d = Identity(c) m = Constant<value = int64 {3}>() x1 = Loop(m, c, s) <
        body = b2 (int64 i2, bool c2, float[N] s2) => (bool d2, float[N] x2) { d2 = Identity(c2) x2 = Tanh(s2) }>"""
    result = check_pass(UnrollLoops(), read(loop(inside)))
    assert [node.op_type for node in all_nodes(result) if node.op_type not in ("Constant", "Identity")] == ["Tanh"] * 6


@pytest.mark.parametrize("where", ["branch", "function"])
def test_elsewhere(where: str) -> None:
    body = """Loop(trips, go, x) <body = b (int64 i, bool c, float[N] s) => (bool d, float[N] x1) {
        d = Identity(c) x1 = Relu(s) }>"""
    if where == "branch":
        text = f"""g (float[N] x, bool[1] flag) => (float[N] y) <int64 trips = {{2}}, bool go = {{1}}> {{ y = If(flag) <
            then_branch = t () => (float[N] p) {{ p = {body} }},
            else_branch = e () => (float[N] q) {{ q = Neg(x) }}> }}"""
    else:
        text = f"""g (float[N] x) => (float[N] y) {{ y = local.f(x) }} <domain: "local", opset_import: ["" : 23]>
            f (x) => (y) {{ trips = Constant<value = int64 {{2}}>() go = Constant<value = bool {{1}}>() y = {body} }}"""
    result = check_pass(UnrollLoops(), read(text))
    found = [node.op_type for node in all_nodes(result)]
    assert found.count("Relu") == 2
    assert "Loop" not in found


@pytest.mark.parametrize(
    "text",
    [
        loop("d = Identity(c) x1 = Relu(s)", trips=9),  # too often
        loop("d = Identity(c) x1 = Relu(s)", inputs=", go, x"),  # without an end
        loop("d = Not(c) x1 = Relu(s)"),  # ends before
        loop("d = Constant<value = bool {0}>() x1 = Relu(s)"),
        loop("d = Identity(c) x1 = Relu(s)", inputs="n, go, x", more=", int64 n"),  # not constant
        loop("d = Identity(c) x1 = Relu(s)", inputs="trips, f, x", more=", bool f"),
        loop("d = Identity(c) x1 = Relu(s) z1 = Neg(s)", trips=0, **TWO),
    ],
)
def test_stays(text: str) -> None:
    assert not UnrollLoops()(read(text)).modified


def test_a_large_body_stays() -> None:
    text = loop("d = Identity(c) t = Relu(s) x1 = Neg(t)")
    assert_stays(UnrollLoops(max_nodes=5), text)
    assert UnrollLoops(max_nodes=6)(read(text)).modified


@settings(max_examples=15, derandomize=True, deadline=None)
@given(models(families=("unary", "if", "neutral")))
def test_property(model: ir.Model) -> None:
    check_pass(UnrollLoops(), model)
