from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.lift_constants import LiftConstants
from tests.passes.transform import assert_becomes, assert_stays


@pytest.mark.parametrize(
    ("constant", "initializer"),
    [
        ("value = float[2] {1,2}", "float[2] c = {1,2}"),
        ("value_floats = [1.0,2.0]", "float[2] c = {1,2}"),
        ("value_float = 1.0", "float c = {1}"),
    ],
)
def test_every_spelling(constant: str, initializer: str) -> None:
    assert_becomes(
        LiftConstants(),
        f"g (float[N,2] x) => (float[N,2] y) {{ c = Constant<{constant}>() y = Add(x, c) }}",
        f"g (float[N,2] x) => (float[N,2] y) <{initializer}> {{ y = Add(x, c) }}",
    )


@pytest.mark.parametrize(
    ("constant", "initializer"), [("value_int = 1", "int64 c = {1}"), ("value_ints = [1,2]", "int64[2] c = {1,2}")]
)
def test_integers(constant: str, initializer: str) -> None:
    assert_becomes(
        LiftConstants(),
        f"g (int64[N,2] x) => (int64[N,2] y) {{ c = Constant<{constant}>() y = Add(x, c) }}",
        f"g (int64[N,2] x) => (int64[N,2] y) <{initializer}> {{ y = Add(x, c) }}",
    )


def test_in_a_branch_it_becomes_an_initializer_of_the_branch() -> None:
    assert_becomes(
        LiftConstants(),
        """g (float[2] x, bool b) => (float[2] y) { y = If (b) <
            then_branch = t () => (o) { c = Constant<value = float {2}>() o = Mul(x, c) },
            else_branch = e () => (p) { p = Neg(x) }> }""",
        """g (float[2] x, bool b) => (float[2] y) { y = If (b) <
            then_branch = t () => (o) <float c = {2}> { o = Mul(x, c) },
            else_branch = e () => (p) { p = Neg(x) }> }""",
    )


def test_an_output_of_the_graph_stays() -> None:
    assert_stays(
        LiftConstants(),
        "g (float[2] x) => (float[2] y, float[2] c) { c = Constant<value = float[2] {1,2}>() y = Add(x, c) }",
    )


def test_in_a_function_it_stays() -> None:
    assert_stays(
        LiftConstants(),
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23]> f (a) => (b) { c = Constant<value = float {2}>() b = Mul(a, c) }""",
    )


def test_a_reference_to_an_attribute_stays() -> None:
    assert_stays(
        LiftConstants(),
        """g (float[2] x) => (float[2] y) { y = local.f<k = 2.0>(x) }
        <domain: "local", opset_import: ["" : 23]> f <k> (a) => (b) {
            c = Constant<value_float: float = @k>() b = Mul(a, c) }""",
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models())
def test_property(model: ir.Model) -> None:
    result = check_pass(LiftConstants(), model)
    assert all(node.op_type != "Constant" for node in result.graph)
