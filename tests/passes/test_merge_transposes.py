from __future__ import annotations

import onnx_ir as ir
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.merge_transposes import MergeTransposes
from tests.passes.transform import assert_becomes, assert_stays


def test_two_become_one() -> None:
    assert_becomes(
        MergeTransposes(),
        """g (float[2,3,4] x) => (float[4,3,2] y) {
            a = Transpose<perm = [1,2,0]>(x) y = Transpose<perm = [1,0,2]>(a) }""",
        "g (float[2,3,4] x) => (float[4,3,2] y) { y = Transpose<perm = [2,1,0]>(x) }",
    )


def test_a_chain_of_four() -> None:
    assert_becomes(
        MergeTransposes(),
        """g (float[2,3,4] x) => (float[4,2,3] y) {
            a = Transpose<perm = [1,2,0]>(x) b = Transpose<perm = [1,2,0]>(a)
            c = Transpose<perm = [1,2,0]>(b) d = Transpose<perm = [2,0,1]>(c) y = Relu(d) }""",
        "g (float[2,3,4] x) => (float[4,2,3] y) { a = Transpose<perm = [2,0,1]>(x) y = Relu(a) }",
    )


def test_two_that_undo_each_other_fall_away() -> None:
    assert_becomes(
        MergeTransposes(),
        "g (float[N,3] x) => (float[N,3] y) { a = Transpose(x) b = Transpose(a) y = Relu(b) }",
        "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }",
    )


def test_the_first_one_stays_when_something_else_uses_it() -> None:
    assert_becomes(
        MergeTransposes(),
        """g (float[2,3,4] x) => (float[4,3,2] y, float[3,4,2] z) {
            a = Transpose<perm = [1,2,0]>(x) y = Transpose<perm = [1,0,2]>(a) z = Relu(a) }""",
        """g (float[2,3,4] x) => (float[4,3,2] y, float[3,4,2] z) {
            a = Transpose<perm = [1,2,0]>(x) y = Transpose<perm = [2,1,0]>(x) z = Relu(a) }""",
    )


def test_an_output_in_the_middle_stays() -> None:
    assert_becomes(
        MergeTransposes(),
        """g (float[2,3] x) => (float[3,2] a, float[2,3] y) { a = Transpose(x) b = Transpose(a) y = Relu(b) }""",
        """g (float[2,3] x) => (float[3,2] a, float[2,3] y) { a = Transpose(x) y = Relu(x) }""",
    )


def test_an_input_cannot_be_an_output() -> None:
    assert_becomes(
        MergeTransposes(),
        "g (float[2,3] x) => (float[2,3] y) { a = Transpose(x) y = Transpose(a) }",
        "g (float[2,3] x) => (float[2,3] y) { y = Transpose<perm = [0,1]>(x) }",
    )


def test_one_alone_stays() -> None:
    assert_stays(MergeTransposes(), "g (float[2,3] x) => (float[3,2] y) { y = Transpose(x) }")


def test_an_unknown_rank_stays() -> None:
    assert_stays(
        MergeTransposes(),
        """g (float[A,B] x) => (float[C,D] y) {
            r = local.f(x) a = Transpose(r) b = Transpose<perm = [1,0]>(a) y = Relu(b) }
        <domain: "local", opset_import: ["" : 23]> f (a) => (b) { b = Neg(a) }""",
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("transpose", "transpose", "unary", "repeat", "unsqueeze")))
def test_property(model: ir.Model) -> None:
    result = check_pass(MergeTransposes(), model)
    transposes = [node for node in result.graph if node.op_type == "Transpose"]
    assert not any(before.op_type == "Transpose" for node in transposes for before in node.predecessors())
