from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.reference import run_reference
from optimizer.testing import check_pass, models
from passes.eliminate_identities import EliminateIdentities
from tests.passes.transform import assert_becomes, assert_stays, read

HEAD = "g (float[N,4] x) => (float[N,4] y)"
PLAIN = f"{HEAD} {{ y = Relu(x) }}"


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Identity(x)",
        "a = Cast<to = 1>(x)",
        "a = CastLike(x, x)",
        "h = Cast<to = 11>(x) a = Cast<to = 1>(h)",
        "s = Constant<value_ints = [0,4]>() a = Reshape(x, s)",
        "s = Constant<value_ints = [-1,4]>() a = Reshape(x, s)",
        "s = Shape(x) a = Reshape(x, s)",
        "s = Shape(x) a = Expand(x, s)",
        "s = Constant<value_ints = [1,1]>() a = Expand(x, s)",
        "a = Flatten(x)",
        "s = Constant<value_ints = [1,1]>() a = Tile(x, s)",
        "k = Constant<value_ints = [1]>() u = Unsqueeze(x, k) a = Squeeze(u, k)",
        "b = Constant<value_ints = [0]>() e = Constant<value_ints = [4]>() k = Constant<value_ints = [1]>()"
        " a = Slice(x, b, e, k)",
        "b = Constant<value_ints = [0]>() e = Constant<value_ints = [9223372036854775807]>() a = Slice(x, b, e)",
        "a = Transpose<perm = [0,1]>(x)",
        "p = Constant<value_ints = [0,0,0,0]>() a = Pad(x, p)",
        "a = Dropout(x)",
        "r = Constant<value_float = 0.5>() t = Constant<value = bool {0}>() a = Dropout(x, r, t)",
        "r = Constant<value_float = 0.0>() t = Constant<value = bool {1}>() a = Dropout(x, r, t)",
        "a = Concat<axis = 0>(x)",
        "a = Max(x)",
        "a = Min(x)",
        "a = Sum(x)",
        "a = Mean(x)",
        "s = Constant<value_ints = [4]>() a = Split<axis = 1>(x, s)",
        "a = Clip(x)",
        "a = ReduceSum<noop_with_empty_axes = 1>(x)",
        "z = Constant<value_float = -0.0>() a = Add(x, z)",
        "z = Constant<value_float = -0.0>() a = Add(z, x)",
        "z = Constant<value_float = 0.0>() a = Sub(x, z)",
        "z = Constant<value_float = 1.0>() a = Mul(x, z)",
        "z = Constant<value_floats = [1.0,1.0,1.0,1.0]>() a = Mul(z, x)",
        "z = Constant<value_float = 1.0>() a = Div(x, z)",
        "z = Constant<value_float = 1.0>() a = Pow(x, z)",
        "c = Constant<value = bool[1] {1}>() n = Neg(x) a = Where(c, x, n)",
        "c = Constant<value = bool[1] {0}>() n = Neg(x) a = Where(c, n, x)",
    ],
)
def test_falls_away(nodes: str) -> None:
    assert_becomes(EliminateIdentities(), f"{HEAD} {{ {nodes} y = Relu(a) }}", PLAIN)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Cast<to = 11>(x) b = Cast<to = 10>(a) c = Cast<to = 1>(b)",  # through a narrower type
        "z = Constant<value_float = 0.0>() c = Add(x, z)",  # -0.0 + 0.0 is 0.0
        "z = Constant<value_float = -0.0>() c = Sub(x, z)",  # -0.0 - -0.0 is 0.0
        "z = Constant<value_float = 0.0>() c = Sub(z, x)",
        "z = Constant<value_float = 1.0>() c = Div(z, x)",
        "z = Constant<value_float = 1.0>() c = Pow(z, x)",
        "z = Constant<value_floats = [1.0,1.0,1.0,2.0]>() c = Mul(x, z)",
        "z = Constant<value = float[1,1,1] {1}>() d = Mul(x, z) k = Constant<value_ints = [0]>() c = Squeeze(d, k)",
        "c = Concat<axis = 0>(x, x)",
        "n = Constant<value_float = 0.5>() c = Clip(x, , n)",
        "p = Constant<value_ints = [0,1,0,-1]>() c = Pad(x, p)",
        "k = Constant<value_ints = [1]>() u = Unsqueeze(x, k) c = Squeeze(u)",  # N could be 1 and go too
        "b = Constant<value_ints = [-1]>() e = Constant<value_ints = [-9]>() k = Constant<value_ints = [1]>()"
        " s = Constant<value_ints = [-1]>() c = Slice(x, b, e, k, s)",  # reversed: the same shape
        "m = Constant<value = bool[4] {1,0,1,1}>() o = Neg(x) c = Where(m, x, o)",
    ],
)
def test_stays(nodes: str) -> None:
    assert_stays(EliminateIdentities(), f"{HEAD} {{ {nodes} y = Relu(c) }}")


def test_stretching_by_a_condition_stays() -> None:
    assert_stays(
        EliminateIdentities(),
        "g (float[4] x) => (float[2,4] y) { c = Constant<value = bool[2,1] {1,1}>() a = Where(c, x, x) y = Relu(a) }",
    )


def test_adding_zero_to_integers_falls_away() -> None:
    assert_becomes(
        EliminateIdentities(),
        "g (int64[N] x) => (int64[N] y) <int64 z = {0}> { a = Add(x, z) y = Neg(a) }",
        "g (int64[N] x) => (int64[N] y) { y = Neg(x) }",
    )


@pytest.mark.parametrize(
    ("nodes", "falls"),
    [("a = And(x, t)", True), ("a = Or(x, t)", False), ("a = And(x, f)", False), ("a = Or(f, x)", True)],
)
def test_truth_values(nodes: str, falls: bool) -> None:
    text = f"g (bool[N] x) => (bool[N] y) <bool t = {{1}}, bool f = {{0}}> {{ {nodes} y = Not(a) }}"
    if falls:
        assert_becomes(EliminateIdentities(), text, "g (bool[N] x) => (bool[N] y) { y = Not(x) }")
    else:
        assert_stays(EliminateIdentities(), text)


def test_minus_zero_survives() -> None:
    text = f"{HEAD} {{ z = Constant<value_float = 0.0>() a = Add(x, z) y = Identity(a) }}"
    model = read(text)
    EliminateIdentities()(model)
    (y,) = run_reference(model, [np.full((1, 4), -0.0, np.float32)])
    assert not np.signbit(y).any()


def test_a_stretching_neutral_element_stays() -> None:
    assert_stays(
        EliminateIdentities(),
        "g (float[1,4] x) => (float[2,4] y) <float[2,1] one = {1,1}> { a = Mul(x, one) y = Relu(a) }",
    )


def test_an_unknown_shape_may_be_stretched() -> None:
    assert_stays(
        EliminateIdentities(),
        "g (float[M,4] x) => (float[A,4] y) <float[3,1] one = {1,1,1}> { a = Mul(x, one) y = Relu(a) }",
    )


def test_the_names_of_outputs_stay() -> None:
    assert_becomes(
        EliminateIdentities(),
        "g (float[N,4] x) => (float[N,4] y) { a = Relu(x) y = Identity(a) }",
        "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }",
    )


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (float[N,4] y) { y = Identity(x) }",  # from an input
        "g (float[N,4] x) => (float[4] y, float[N,4] z) <float[4] w = {1,2,3,4}> { y = Identity(w) z = Add(x, w) }",
        "g (float[N,4] x) => (float[N,4] a, float[N,4] y) { a = Relu(x) y = Identity(a) }",  # from another output
    ],
)
def test_an_output_that_needs_its_node_stays(text: str) -> None:
    assert_stays(EliminateIdentities(), text)


def test_a_value_from_around_a_branch_needs_a_node_in_it() -> None:
    assert_stays(
        EliminateIdentities(),
        """g (float[2] x, bool b) => (float[2] y) { y = If (b) <
            then_branch = t () => (o) { o = Identity(x) }, else_branch = e () => (p) { p = Neg(x) }> }""",
    )


def test_an_identity_between_graphs_falls_away() -> None:
    assert_becomes(
        EliminateIdentities(),
        """g (float[2] x, bool b) => (float[2] y) { a = Identity(x) y = If (b) <
            then_branch = t () => (o) { o = Relu(a) }, else_branch = e () => (p) { p = Neg(a) }> }""",
        """g (float[2] x, bool b) => (float[2] y) { y = If (b) <
            then_branch = t () => (o) { o = Relu(x) }, else_branch = e () => (p) { p = Neg(x) }> }""",
    )


def test_the_mask_of_a_dropout_is_all_true() -> None:
    assert_becomes(
        EliminateIdentities(),
        "g (float[N,4] x) => (float[N,4] y, bool[N,4] m) { a, m = Dropout(x) y = Relu(a) }",
        """g (float[N,4] x) => (float[N,4] y, bool[N,4] m) {
            s = Shape(x) m = ConstantOfShape<value = bool[1] {1}>(s) y = Relu(x) }""",
    )


def test_an_old_mask_is_not_specified() -> None:
    model = read("g (float[N,4] x) => (float[N,4] y, bool[N,4] m) { a, m = Dropout(x) y = Relu(a) }", opset=10)
    assert not EliminateIdentities()(model).modified


def test_dropout_in_training_stays() -> None:
    model = read(f"{HEAD} <float r = {{0.5}}, bool t = {{1}}> {{ a = Dropout(x, r, t) y = Relu(a) }}")
    assert not EliminateIdentities()(model).modified


@pytest.mark.parametrize("opset", [7, 10, 11])
def test_old_opsets(opset: int) -> None:
    nodes = "a = Dropout<ratio = 0.5>(x) b = Squeeze<axes = [2]>(c)"
    nodes = nodes.replace("b =", "c = Unsqueeze<axes = [2]>(a) b =")
    if opset < 10:
        nodes += " d = Slice<starts = [0], ends = [2147483647]>(b) e = Pad<pads = [0,0,0,0]>(d)"
    else:
        nodes += " e = Identity(b)"
    assert_becomes(EliminateIdentities(), f"{HEAD} {{ {nodes} y = Relu(e) }}", PLAIN, opset=opset)


def test_an_old_clip_without_bounds_clips_infinity() -> None:
    assert_stays(EliminateIdentities(), f"{HEAD} {{ a = Clip(x) y = Relu(a) }}", opset=7)


def test_inside_a_function() -> None:
    assert_becomes(
        EliminateIdentities(),
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23]> f (a) => (b) { c = Identity(a) b = Neg(c) }""",
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 23]> f (a) => (b) { b = Neg(a) }""",
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models())
def test_property(model: ir.Model) -> None:
    check_pass(EliminateIdentities(), model)
