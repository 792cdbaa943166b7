from __future__ import annotations

import onnx_ir as ir
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.remove_unused import RemoveUnused
from tests.passes.transform import assert_becomes, assert_stays, read


def test_a_dead_chain_falls_away_with_its_initializers() -> None:
    assert_becomes(
        RemoveUnused(),
        """g (float[3] x) => (float[3] y) <float[3] w = {1,2,3}, float[3] v = {1,2,3}> {
            a = Add(x, w) b = Relu(a) c = Neg(b) y = Abs(x) }""",
        "g (float[3] x) => (float[3] y) { y = Abs(x) }",
    )


def test_a_dead_if_frees_what_its_branches_use() -> None:
    assert_becomes(
        RemoveUnused(),
        """g (float[3] x, bool c) => (float[3] y) <float[3] w = {1,2,3}> {
            a = Add(x, w)
            b = If (c) <then_branch = t () => (o) { o = Neg(a) }, else_branch = e () => (p) { p = Abs(a) }>
            y = Abs(x) }""",
        "g (float[3] x, bool c) => (float[3] y) { y = Abs(x) }",
    )


def test_dead_nodes_inside_a_branch() -> None:
    assert_becomes(
        RemoveUnused(),
        """g (float[3] x, bool c) => (float[3] y) {
            a = Relu(x)
            y = If (c) <
                then_branch = t () => (o) { d = Neg(a) o = Neg(x) }, else_branch = e () => (p) { p = Abs(x) }> }""",
        """g (float[3] x, bool c) => (float[3] y) {
            y = If (c) <then_branch = t () => (o) { o = Neg(x) }, else_branch = e () => (p) { p = Abs(x) }> }""",
    )


def test_functions_that_nothing_calls() -> None:
    functions = """
        <domain: "local", opset_import: ["" : 23]> used (a) => (b) { b = Neg(a) }
        <domain: "local", opset_import: ["" : 23, "local" : 1]> dead (a) => (b) { b = local.used(a) }"""
    model = read("g (float[3] x) => (float[3] y) { y = local.used(x) }" + functions)
    assert RemoveUnused()(model).modified
    assert [name for _, name, _ in model.functions] == ["used"]


def test_optional_outputs_and_trailing_inputs() -> None:
    model = read("""g (float[1,1,4,4] x) => (float[1,1,2,2] y) {
        a, i = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x) y = Clip(a, , ) }""")
    assert RemoveUnused()(model).modified
    pool, clip = model.graph
    assert len(pool.outputs) == 1
    assert len(clip.inputs) == 1


def test_an_unused_first_output_loses_its_name() -> None:
    model = read("""g (float[2,1,3] x, float[1,4,3] w, float[1,4,4] r) => (float[1,1,4] h) {
        all, h = RNN<hidden_size = 4>(x, w, r) }""")
    assert RemoveUnused()(model).modified
    assert [output.name for output in model.graph[0].outputs] == ["", "h"]


def test_a_used_mask_stays() -> None:
    assert_stays(RemoveUnused(), "g (float[3] x) => (float[3] y, bool[3] m) { y, m = Dropout(x) }")


def test_outputs_whose_presence_means_something_stay() -> None:
    """Two outputs of BatchNormalization mean training."""
    assert_stays(
        RemoveUnused(),
        """g (float[4,2] x, float[2] s, float[2] b, float[2] m, float[2] v) => (float[4,2] y) {
            y, rm, rv = BatchNormalization<training_mode = 1>(x, s, b, m, v) }""",
    )


def test_the_interface_stays() -> None:
    assert_stays(RemoveUnused(), "g (float[3] x, float[3] unused) => (float[3] y) { y = Neg(x) }")
    model = read("g (float[3] x, float[3] w) => (float[3] y) <float[3] w = {1,2,3}> { y = Neg(x) }")
    assert not RemoveUnused()(model).modified


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models())
def test_property(model: ir.Model) -> None:
    result = check_pass(RemoveUnused(), model)
    for node in result.graph:
        assert any(output.uses() or output.is_graph_output() for output in node.outputs)


def test_a_function_goes_with_its_last_call() -> None:
    """In one run: the call is dead, and then so is the function."""
    result = check_pass(
        RemoveUnused(),
        read(
            """g (float[2] x) => (float[2] y) { a = local.f(x) y = Neg(x) }
            <domain: "local", opset_import: ["" : 23, "local" : 1]> f (p) => (q) { q = local.h(p) }
            <domain: "local", opset_import: ["" : 23]> h (p) => (q) { q = Abs(p) }"""
        ),
    )
    assert not result.functions
