from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir import provenance
from optimizer.pass_manager import PassManager
from optimizer.testing import check_pass, models
from passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from tests.passes.transform import assert_becomes, assert_stays, read


def test_equal_chains_merge() -> None:
    assert_becomes(
        EliminateCommonSubexpressions(),
        """g (float[N,4] x) => (float[N,4] y) {
            a = Softmax<axis = 1>(x) b = Neg(a) c = Softmax<axis = 1>(x) d = Neg(c) y = Add(b, d) }""",
        "g (float[N,4] x) => (float[N,4] y) { a = Softmax<axis = 1>(x) b = Neg(a) y = Add(b, b) }",
    )


def test_several_outputs() -> None:
    assert_becomes(
        EliminateCommonSubexpressions(),
        """g (float[N,4] x) => (float[N,2] y) {
            a, b = Split<axis = 1, num_outputs = 2>(x) c, d = Split<axis = 1, num_outputs = 2>(x) y = Sub(a, d) }""",
        "g (float[N,4] x) => (float[N,2] y) { a, b = Split<axis = 1, num_outputs = 2>(x) y = Sub(a, b) }",
    )


def test_a_branch_takes_what_stands_before_it() -> None:
    assert_becomes(
        EliminateCommonSubexpressions(),
        """g (float[2] x, bool c) => (float[2] y) { a = Relu(x) r = If (c) <
            then_branch = t () => (o) { b = Relu(x) o = Neg(b) }, else_branch = e () => (p) { p = Neg(a) }>
            y = Add(r, a) }""",
        """g (float[2] x, bool c) => (float[2] y) { a = Relu(x) r = If (c) <
            then_branch = t () => (o) { o = Neg(a) }, else_branch = e () => (p) { p = Neg(a) }>
            y = Add(r, a) }""",
    )


def test_the_name_of_an_output_stays() -> None:
    assert_becomes(
        EliminateCommonSubexpressions(),
        "g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x) z = Exp(a) y = Neg(x) }",
        "g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) z = Exp(y) }",
    )


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (float[2] y) { a = Softmax<axis = 0>(x) b = Softmax<axis = -1>(x) y = Add(a, b) }",
        "g (float[2] x) => (float[2] y) { a = Sub(x, x) b = Add(x, x) y = Add(a, b) }",
        "g (float[2] x, float[2] w) => (float[2] y) { a = Sub(x, w) b = Sub(w, x) y = Add(a, b) }",
        "g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x) z = Neg(x) }",  # both are outputs
        # what stands in a branch is not there for the graph around it, nor for the other branch
        """g (float[2] x, bool c) => (float[2] y) { r = If (c) <
            then_branch = t () => (o) { b = Relu(x) o = Neg(b) }, else_branch = e () => (p) { q = Relu(x) p = Exp(q) }>
            a = Relu(x) y = Add(r, a) }""",
    ],
)
def test_stays(text: str) -> None:
    assert_stays(EliminateCommonSubexpressions(), text)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = RandomNormalLike(x) b = RandomNormalLike(x)",
        "a = RandomNormalLike<seed = 1.0>(x) b = RandomNormalLike<seed = 1.0>(x)",
        "a = Dropout(x, r, t) b = Dropout(x, r, t)",
        "a = local.Mystery(x) b = local.Mystery(x)",
    ],
)
def test_what_may_give_something_else_each_time_stays(nodes: str) -> None:
    model = read(f"g (float[2] x) => (float[2] y) <float r = {{0.5}}, bool t = {{1}}> {{ {nodes} y = Add(a, b) }}")
    assert not EliminateCommonSubexpressions()(model).modified


def test_the_kept_node_stands_for_both() -> None:
    model = read("g (float[2] x) => (float[2] y) { [first] a = Neg(x) [second] b = Neg(x) y = Add(a, b) }")
    PassManager([EliminateCommonSubexpressions()]).run(model)
    assert provenance.origins(model.graph[0]) == ("first", "second")
    assert provenance.makers(model.graph[0]) == ("eliminate-common-subexpressions",)


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models())
def test_property(model: ir.Model) -> None:
    check_pass(EliminateCommonSubexpressions(), model)
