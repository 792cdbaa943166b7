from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, difference, models
from passes.merge_reshapes import MergeReshapes
from passes.remove_unused import RemoveUnused
from tests.passes.transform import assert_becomes, assert_stays, read


def test_symbols_become_zeros() -> None:
    assert_becomes(
        MergeReshapes(),
        """g (float[N,S,8] x) => (float[N,S,2,4] y) <int64[2] flat = {-1,8}, int64[2] heads = {2,4}> {
            r = Reshape(x, flat)
            d = Shape<end = 2>(x) s = Concat<axis = 0>(d, heads)
            y = Reshape(r, s) }""",
        "g (float[N,S,8] x) => (float[N,S,2,4] y) <int64[4] s = {0,0,2,4}> { y = Reshape(x, s) }",
    )


def test_a_zero_copies_the_size_of_its_own_input() -> None:
    """The inner Reshape moves the axis that the outer one copies: the zeros do not compose."""
    assert_becomes(
        MergeReshapes(),
        """g (float[2,3,4] x) => (float[6,2,2] y) <int64[2] a = {6,4}, int64[3] b = {0,2,2}> {
            r = Reshape(x, a) y = Reshape(r, b) }""",
        "g (float[2,3,4] x) => (float[6,2,2] y) <int64[3] s = {6,2,2}> { y = Reshape(x, s) }",
    )


def test_a_copied_size_that_stands_elsewhere_in_the_input_stays() -> None:
    assert_stays(
        MergeReshapes(),
        """g (float[N,S,4] x) => (float[A,B,2,2] y) <int64[4] s = {0,0,2,2}> {
            t = Transpose<perm = [1,0,2]>(x) k = Shape(x) r = Reshape(t, k) q = Neg(r) f = Flatten<axis = 2>(t)
            u = Reshape(f, k) y = Reshape(u, s) }""",
    )


def test_a_constant_without_zeros_takes_any_input() -> None:
    assert_becomes(
        MergeReshapes(),
        """g (float[A,B] x, int64[2] s) => (float[C,4] y) <int64[2] c = {-1,4}> {
            r = Expand(x, s) f = Flatten(r) y = Reshape(f, c) }""",
        """g (float[A,B] x, int64[2] s) => (float[C,4] y) <int64[2] c = {-1,4}> {
            r = Expand(x, s) y = Reshape(r, c) }""",
    )


def test_back_to_the_first_shape() -> None:
    assert_becomes(
        MergeReshapes(),
        """g (float[N,4] x) => (float[N,4] y) <int64[1] k = {1}> {
            u = Unsqueeze(x, k) f = Flatten(u) y = Relu(f) }""",
        "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }",
    )


def test_the_first_one_stays_when_something_else_uses_it() -> None:
    assert_becomes(
        MergeReshapes(),
        """g (float[2,3,4] x) => (float[24] y, float[6,4] z) <int64[2] a = {6,4}, int64[1] b = {-1}> {
            r = Reshape(x, a) y = Reshape(r, b) z = Relu(r) }""",
        """g (float[2,3,4] x) => (float[24] y, float[6,4] z) <int64[2] a = {6,4}, int64[1] b = {24}> {
            r = Reshape(x, a) y = Reshape(x, b) z = Relu(r) }""",
    )


def test_minus_one_and_zero_do_not_meet_where_they_did_not() -> None:
    """With both, a tensor without elements fails at run time, where the original works."""
    assert_stays(
        MergeReshapes(),
        """g (float[N,S,4] x) => (float[N,M] y) {
            f = Flatten<axis = 2>(x) d = Shape<start = 0, end = 1>(x) m = Shape<start = 1>(x) p = ReduceProd(m)
            s = Concat<axis = 0>(d, p) y = Reshape(f, s) }""",
    )


def test_minus_one_and_zero_stay_where_they_were() -> None:
    assert_becomes(
        MergeReshapes(),
        """g (float[N,S,4] x) => (float[N,M] y) <int64[1] k = {3}, int64[2] s = {0,-1}> {
            u = Unsqueeze(x, k) y = Reshape(u, s) }""",
        "g (float[N,S,4] x) => (float[N,M] y) <int64[2] s = {0,-1}> { y = Reshape(x, s) }",
    )


@pytest.mark.parametrize("opset", [11, 13])
def test_axes_that_a_constant_shape_cannot_say(opset: int) -> None:
    def node(op_type: str, source: str, name: str, *axes: int) -> str:
        if opset < 13:
            return f"{name} = {op_type}<axes = [{','.join(map(str, axes))}]>({source})"
        return f"{name} = {op_type}({source}, k{''.join(map(str, axes))})"

    long, short = "float[N,1,1,S]", "float[N,S]"
    axes = "<int64[1] k1 = {1}, int64[1] k2 = {2}, int64[2] k12 = {1,2}>" if opset >= 13 else ""
    for op_type, start, wanted in (("Unsqueeze", short, long), ("Squeeze", long, short)):
        first, second = (1, 2) if op_type == "Unsqueeze" else (2, 1)
        pair = node(op_type, "x", "a", first) + " " + node(op_type, "a", "y", second)
        one = node(op_type, "x", "y", 1, 2)
        model = read(f"g ({start} x) => ({wanted} y) {axes} {{ {pair} }}", opset)
        expected = read(f"g ({start} x) => ({wanted} y) {axes} {{ {one} }}", opset)
        result = check_pass(MergeReshapes(), model)
        RemoveUnused()(result)
        RemoveUnused()(expected)
        assert not difference(expected, result, types=False)


def test_one_alone_stays() -> None:
    assert_stays(MergeReshapes(), "g (float[N,2,3] x) => (float[N,6] y) { y = Flatten(x) }")


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("reshape", "squeeze", "unsqueeze", "unary", "transpose", "repeat")))
def test_property(model: ir.Model) -> None:
    check_pass(MergeReshapes(), model)
