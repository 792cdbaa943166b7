from __future__ import annotations

import onnx_ir as ir
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.simplify_shapes import SimplifyShapes
from tests.passes.transform import assert_becomes, assert_stays, read


def test_what_an_exporter_writes_for_view() -> None:
    """x.view(x.size(0), x.size(1), heads, -1), as the tracing exporter spells it."""
    assert_becomes(
        SimplifyShapes(),
        """g (float[B,S,8] x) => (float[B,S,2,4] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] at = {0}, int64[1] heads = {2}, int64[1] rest = {-1}> {
            s1 = Shape(x) b = Gather(s1, zero) b1 = Unsqueeze(b, at)
            s2 = Shape(x) s = Gather(s2, one) t1 = Unsqueeze(s, at)
            shape = Concat<axis = 0>(b1, t1, heads, rest)
            y = Reshape(x, shape) }""",
        "g (float[B,S,8] x) => (float[B,S,2,4] y) <int64[4] s = {0,0,2,4}> { y = Reshape(x, s) }",
    )


def test_arithmetic_on_sizes() -> None:
    assert_becomes(
        SimplifyShapes(),
        """g (float[B,S,8] x) => (float[M,8] y)
        <int64 zero = {0}, int64 one = {1}, int64[1] at = {0}, int64[1] d = {8}> {
            s = Shape(x) a = Gather(s, zero) b = Gather(s, one) m = Mul(a, b) u = Unsqueeze(m, at)
            shape = Concat<axis = 0>(u, d) y = Reshape(x, shape) }""",
        "g (float[B,S,8] x) => (float[M,8] y) <int64[2] s = {-1,8}> { y = Reshape(x, s) }",
    )


def test_static_sizes_become_constants() -> None:
    assert_becomes(
        SimplifyShapes(),
        """g (float[N,6] x) => (float[N,6] y) <int64 one = {1}, int64 two = {2}> {
            s = Shape(x) n = Gather(s, one) h = Div(n, two) f = Cast<to = 1>(h) y = Mul(x, f) }""",
        "g (float[N,6] x) => (float[N,6] y) <int64 h = {3}> { f = Cast<to = 1>(h) y = Mul(x, f) }",
    )


def test_equal_symbols_end_at_the_first_shape() -> None:
    assert_becomes(
        SimplifyShapes(),
        """g (float[N,S] x) => (float[A] p, float[B] q) <int64 zero = {0}, float[1] v = {1}, int64[1] at = {0}> {
            s1 = Shape(x) n1 = Gather(s1, zero) u1 = Unsqueeze(n1, at) p = Expand(v, u1)
            r = Relu(x) s2 = Shape(r) n2 = Gather(s2, zero) u2 = Unsqueeze(n2, at) q = Tile(v, u2) }""",
        """g (float[N,S] x) => (float[A] p, float[B] q) <int64 zero = {0}, float[1] v = {1}, int64[1] at = {0}> {
            s1 = Shape(x) n1 = Gather(s1, zero) u1 = Unsqueeze(n1, at) p = Expand(v, u1) q = Tile(v, u1) }""",
    )


def test_sizes_without_a_name_are_followed_too() -> None:
    assert_becomes(
        SimplifyShapes(),
        """g (float[?,8] x) => (float[?,2,4] y) <int64[2] d = {2,4}> {
            n = Shape<end = 1>(x) s = Concat<axis = 0>(n, d) y = Reshape(x, s) }""",
        "g (float[?,8] x) => (float[?,2,4] y) <int64[3] s = {0,2,4}> { y = Reshape(x, s) }",
    )


def test_two_sizes_without_a_name_are_not_equal() -> None:
    assert_stays(
        SimplifyShapes(),
        """g (float[?,?] x, float[?,?] z) => (float[?] y) {
            a = Shape(x) b = Shape(z) c = Concat<axis = 0>(a, b) f = Cast<to = 1>(c) y = Relu(f) }""",
    )


def test_the_choice_of_torch_expand() -> None:
    """Where(shape == -1, ones, shape), on a shape that is partly symbolic."""
    assert_becomes(
        SimplifyShapes(),
        """g (float[N,1] x) => (float[N,4] y) <int64[1] four = {4}, int64 minus = {-1}, int64[2] ones = {1,1}> {
            n = Shape<end = 1>(x) s = Concat<axis = 0>(n, four) e = Equal(s, minus) w = Where(e, ones, s)
            y = Expand(x, w) }""",
        "g (float[N,1] x) => (float[N,4] y) <int64[2] s = {1,4}> { y = Expand(x, s) }",
    )


def test_integer_division_truncates() -> None:
    assert_becomes(
        SimplifyShapes(),
        """g (float[5] x) => (int64[1] y) <int64 eight = {8}, int64 two = {2}, int64[1] one = {1}> {
            n = Size(x) m = Sub(n, eight) d = Div(m, two) y = Add(d, one) }""",
        "g (float[5] x) => (int64[1] y) { y = Constant<value = int64[1] {0}>() }",
    )


def test_two_symbols_that_no_constant_can_say_stay() -> None:
    assert_stays(
        SimplifyShapes(),
        """g (float[N,S,4] x) => (float[S,N,4] y) <int64[1] d = {4}> {
            n = Shape<end = 1>(x) s = Shape<start = 1, end = 2>(x) k = Concat<axis = 0>(s, n, d) y = Reshape(x, k) }""",
    )


def test_minus_one_and_zero_do_not_meet_where_they_did_not() -> None:
    assert_stays(
        SimplifyShapes(),
        """g (float[N,S,4] x) => (float[N,M] y) {
            n = Shape<end = 1>(x) m = Shape<start = 1>(x) p = ReduceProd(m) k = Concat<axis = 0>(n, p)
            y = Reshape(x, k) }""",
    )


def test_a_zero_that_means_zero_stays() -> None:
    assert_stays(
        SimplifyShapes(),
        """g (float[N,0] x, int64[2] z) => (float[0,N] y) <int64[1] zero = {0}> {
            n = Shape<end = 1>(x) k = Concat<axis = 0>(zero, n) y = Reshape<allowzero = 1>(x, k) }""",
    )


def test_allowzero_that_means_nothing_falls_away() -> None:
    assert_becomes(
        SimplifyShapes(),
        "g (float[N,4] x) => (float[M] y) <int64[1] s = {-1}> { y = Reshape<allowzero = 1>(x, s) }",
        "g (float[N,4] x) => (float[M] y) <int64[1] s = {-1}> { y = Reshape(x, s) }",
    )


def test_an_input_is_not_known() -> None:
    model = read("""g (float[N,4] x, int64[1] k) => (float[A,B] y) <int64[1] d = {-1}> {
        s = Concat<axis = 0>(k, d) y = Reshape(x, s) }""")
    assert not SimplifyShapes()(model).modified


def test_a_branch_uses_what_stands_before_it_only() -> None:
    text = """g (float[N] x, bool c) => (float[N] y) {
        a = Shape(x)
        r = If (c) <then_branch = t () => (o) { FIRST i = Cast<to = 1>(p) o = Mul(x, i) },
                    else_branch = e () => (u) { q = Size(x) z = Cast<to = 1>(q) u = Mul(x, z) }>
        n = Size(x) w = Cast<to = 1>(n) v = Cast<to = 1>(a) b = Mul(r, w) y = Add(b, v) }"""
    expected = text.replace("FIRST", "").replace("(p)", "(a)")
    assert_becomes(SimplifyShapes(), text.replace("FIRST", "p = Shape(x)"), expected)


def test_an_output_of_the_graph_keeps_its_name() -> None:
    assert_becomes(
        SimplifyShapes(),
        "g (float[2,3] x) => (int64[2] s, int64[2] t) { s = Shape(x) t = Identity(s) }",
        """g (float[2,3] x) => (int64[2] s, int64[2] t) {
            s = Constant<value = int64[2] {2,3}>() t = Constant<value = int64[2] {2,3}>() }""",
    )


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models(families=("reshape", "expand", "unary", "transpose", "unsqueeze", "repeat", "if")))
def test_property(model: ir.Model) -> None:
    check_pass(SimplifyShapes(), model)
