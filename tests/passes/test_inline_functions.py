from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir import provenance
from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass, models
from passes.inline_functions import InlineFunctions
from tests.passes.transform import assert_becomes, read

TWICE = '<domain: "local", opset_import: ["" : 23]> twice (a) => (b) { c = Add(a, a) b = Relu(c) }'


def test_two_calls_of_one_function() -> None:
    assert_becomes(
        InlineFunctions(),
        f"g (float[2] x) => (float[2] y) {{ c = local.twice(x) y = local.twice(c) }} {TWICE}",
        "g (float[2] x) => (float[2] y) { a = Add(x, x) b = Relu(a) c = Add(b, b) y = Relu(c) }",
    )


def test_functions_that_call_functions() -> None:
    assert_becomes(
        InlineFunctions(),
        f"""g (float[2] x) => (float[2] y) {{ y = local.outer(x) }}
        <domain: "local", opset_import: ["" : 23, "local" : 1]> outer (p) => (q) {{ r = local.twice(p) q = Neg(r) }}
        {TWICE}""",
        "g (float[2] x) => (float[2] y) { a = Add(x, x) b = Relu(a) y = Neg(b) }",
    )


def test_attributes_are_those_of_the_call_or_the_defaults() -> None:
    assert_becomes(
        InlineFunctions(),
        """g (float[2,2] x) => (float[2,2] y) { a = local.f<axis = 0>(x) y = local.f(a) }
        <domain: "local", opset_import: ["" : 23]> f <axis : int = 1, other> (p) => (q) {
            r = Softmax<axis : int = @axis>(p) q = LeakyRelu<alpha : float = @other>(r) }""",
        """g (float[2,2] x) => (float[2,2] y) {
            a = Softmax<axis = 0>(x) b = LeakyRelu(a) c = Softmax<axis = 1>(b) y = LeakyRelu(c) }""",
    )


def test_an_input_that_is_left_out() -> None:
    assert_becomes(
        InlineFunctions(),
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23]> f (p, low) => (q) { q = Clip(p, low) }""",
        "g (float[2] x) => (float[2] y) { y = Clip(x) }",
    )


def test_an_input_that_is_passed_on() -> None:
    assert_becomes(
        InlineFunctions(),
        """g (float[2] x) => (float[2] y, float[2] z) { a, y = local.f(x) z = Neg(a) }
        <domain: "local", opset_import: ["" : 23]> f (p) => (p, q) { q = Relu(p) }""",
        "g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Neg(x) }",
    )


def test_an_input_that_becomes_an_output_of_the_graph() -> None:
    assert_becomes(
        InlineFunctions(),
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23]> f (p) => (p) { }""",
        "g (float[2] x) => (float[2] y) { y = Identity(x) }",
    )


def test_in_a_branch_and_with_a_branch() -> None:
    assert_becomes(
        InlineFunctions(),
        """g (float[2] x, bool c) => (float[2] y) { y = If (c) <
            then_branch = t () => (o) { o = local.f(x, c) }, else_branch = e () => (p) { p = Neg(x) }> }
        <domain: "local", opset_import: ["" : 23]> f (a, k) => (b) { b = If (k) <
            then_branch = t () => (o) { o = Exp(a) }, else_branch = e () => (p) { p = Abs(a) }> }""",
        """g (float[2] x, bool c) => (float[2] y) { y = If (c) <
            then_branch = t () => (o) { o = If (c) <
                then_branch = t2 () => (o2) { o2 = Exp(x) }, else_branch = e2 () => (p2) { p2 = Abs(x) }> },
            else_branch = e () => (p) { p = Neg(x) }> }""",
    )


def test_another_version_of_operators_that_did_not_change() -> None:
    assert_becomes(
        InlineFunctions(),
        f"g (float[2] x) => (float[2] y) {{ y = local.twice(x) }} {TWICE.replace('23', '14')}",
        "g (float[2] x) => (float[2] y) { a = Add(x, x) y = Relu(a) }",
    )


@pytest.mark.unwatched
def test_another_version_of_an_operator_that_changed_stays() -> None:
    """ONNX's checker does not allow it, but it does not harm either."""
    model = read("""g (float[2,2] x) => (float[2,2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 11]> f (a) => (b) { b = Softmax(a) }""")
    assert not InlineFunctions()(model).modified


def test_a_new_domain_is_imported() -> None:
    model = read("""g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23, "ai.onnx.ml" : 3]> f (a) => (b) { b = ai.onnx.ml.Binarizer(a) }""")
    InlineFunctions()(model)
    assert model.opset_imports["ai.onnx.ml"] == 3


@pytest.mark.unwatched
def test_functions_that_call_each_other_stay() -> None:
    model = read("""g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23, "local" : 1]> f (a) => (b) { b = local.h(a) }
        <domain: "local", opset_import: ["" : 23, "local" : 1]> h (a) => (b) { b = local.f(a) }""")
    assert not InlineFunctions()(model).modified


def test_functions_that_nothing_calls_fall_away() -> None:
    model = read(f"g (float[2] x) => (float[2] y) {{ y = Neg(x) }} {TWICE}")
    assert InlineFunctions()(model).modified
    assert not model.functions


def test_nodes_know_the_call_that_they_come_from() -> None:
    model = read(f"g (float[2] x) => (float[2] y) {{ [call] y = local.twice(x) }} {TWICE}")
    PassManager([InlineFunctions()]).run(model)
    assert all("call" in provenance.origins(node) for node in model.graph)
    assert all(provenance.makers(node) == ("inline-functions",) for node in model.graph)


@settings(max_examples=10, derandomize=True, deadline=None)
@given(models())
def test_property(model: ir.Model) -> None:
    check_pass(InlineFunctions(), model)


def test_nodes_of_a_body_that_is_called_twice_have_names_of_their_own() -> None:
    model = read("""g (float[2] x) => (float[2] y) { a = local.f(x) y = local.f(a) }
        <domain: "local", opset_import: ["" : 23]> f (x) => (y) { e = Exp(x) y = Neg(e) }""")
    for node in next(iter(model.functions.values())):
        node.name = node.outputs[0].name
    check_pass(InlineFunctions(), model)
    InlineFunctions()(model)
    names = [node.name for node in model.graph]
    assert len(set(names)) == len(names) == 4
