from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.fold_constant_if import FoldConstantIf
from tests.passes.transform import assert_becomes, assert_stays

IF = """g (float[2] x) => (float[2] y) <bool c = {COND}> { a = Neg(x) r = If (c) <
    then_branch = t () => (o) <float[2] w = {1,2}> { m = Mul(a, w) o = Relu(m) },
    else_branch = e () => (p) { p = Exp(a) }> y = Abs(r) }"""


def test_the_branch_moves_out() -> None:
    assert_becomes(
        FoldConstantIf(),
        IF.replace("COND", "1"),
        "g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { a = Neg(x) m = Mul(a, w) o = Relu(m) y = Abs(o) }",
    )
    assert_becomes(
        FoldConstantIf(), IF.replace("COND", "0"), "g (float[2] x) => (float[2] y) { a = Neg(x) p = Exp(a) y = Abs(p) }"
    )


def test_a_condition_that_is_computed_stays() -> None:
    assert_stays(FoldConstantIf(), IF.replace("x) =>", "x, bool c) =>").replace("<bool c = {COND}>", ""))


def test_a_default_of_an_input_is_not_constant() -> None:
    from tests.passes.transform import read

    model = read(IF.replace("x) =>", "x, bool c) =>").replace("COND", "1"))
    assert not FoldConstantIf()(model).modified


def test_the_names_of_outputs_stay() -> None:
    assert_becomes(
        FoldConstantIf(),
        """g (float[2] x) => (float[2] y) <bool c = {1}> { y = If (c) <
            then_branch = t () => (o) { o = Relu(x) }, else_branch = e () => (p) { p = Exp(x) }> }""",
        "g (float[2] x) => (float[2] y) { y = Relu(x) }",
    )


def test_an_initializer_of_the_branch_as_output() -> None:
    assert_becomes(
        FoldConstantIf(),
        """g (float[2] x) => (float[2] y) <bool c = {1}> { y = If (c) <
            then_branch = t () => (o) <float[2] o = {1,2}> { }, else_branch = e () => (p) { p = Exp(x) }> }""",
        "g (float[2] x) => (float[2] y) <float[2] w = {1,2}> { y = Identity(w) }",
    )


def test_nested_ones_fold_from_the_inside() -> None:
    assert_becomes(
        FoldConstantIf(),
        """g (float[2] x) => (float[2] y) <bool c = {1}> { y = If (c) <
            then_branch = t () => (o) { o = If (c) <
                then_branch = tt () => (q) { s = Neg(x) q = Relu(s) }, else_branch = te () => (u) { u = Abs(x) }> },
            else_branch = e () => (p) { p = Exp(x) }> }""",
        "g (float[2] x) => (float[2] y) { s = Neg(x) y = Relu(s) }",
    )


def test_names_that_would_clash_are_changed() -> None:
    """Both branches, and those of another If, use the same names."""
    branches = (
        """then_branch = t () => (o) { m = Neg(x) o = Relu(m) }, else_branch = e () => (o) { m = Abs(x) o = Exp(m) }"""
    )
    assert_becomes(
        FoldConstantIf(),
        f"""g (float[2] x, bool d) => (float[2] y) <bool c = {{1}}> {{
            a = If (c) <{branches}> b = If (d) <{branches}> y = Add(a, b) }}""",
        f"""g (float[2] x, bool d) => (float[2] y) {{
            k = Neg(x) a = Relu(k) b = If (d) <{branches}> y = Add(a, b) }}""",
    )


@pytest.mark.parametrize("opset", [7, 11, 16])
def test_every_opset(opset: int) -> None:
    assert_becomes(
        FoldConstantIf(),
        IF.replace("COND", "0"),
        "g (float[2] x) => (float[2] y) { a = Neg(x) p = Exp(a) y = Abs(p) }",
        opset=opset,
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("if", "if", "unary", "identity", "constants")))
def test_property(model: ir.Model) -> None:
    result = check_pass(FoldConstantIf(), model)
    conditions = [node.inputs[0] for node in result.graph if node.op_type == "If"]
    assert not conditions
