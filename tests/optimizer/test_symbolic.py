"""Arithmetic on sizes: equal polynomials are equal, and what cannot be told is a symbol of its own."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.ir.symbolic import (
    Dim,
    Expr,
    at_least_zero,
    exact_div,
    floor_div,
    is_at_least,
    is_limited,
    maximum,
    minimum,
    modulo,
    parse_dim,
    product,
    symbol,
)

N, S = symbol("N"), symbol("S")


def evaluate(dim: Dim, sizes: dict[str, int]) -> int:
    """The number that a text stands for, by Python's own arithmetic."""
    text = re.sub(r"floor\(", "math.floor(", str(dim)).replace("Max(", "max(").replace("Min(", "min(")
    names = {"math": math, "max": max, "min": min, "Mod": lambda a, b: a % b}
    return int(eval(text, {"__builtins__": {}}, {**names, **sizes}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((N + 1) * 2, 2 * N + 2),
        (N * S - S * N, 0),
        ((N + S) * (N - S), N * N - S * S),
        (3 - N, -1 * N + 3),
        (product([2, N, 3, S]), 6 * N * S),
        (exact_div(N * S * 768, N * 12), 64 * S),
        (floor_div(6 * N + 4, 2), 3 * N + 2),
        (floor_div(N * S, N * S), 1),
        (modulo(4 * N, 2), 0),
        (maximum(N + 1, N), N + 1),
        (minimum(N, N + S), N),
        (at_least_zero(N + 2), N + 2),
        (at_least_zero(-3), 0),
    ],
)
def test_equal(one: Dim, other: Dim) -> None:
    assert one == other


def test_what_cannot_be_told() -> None:
    assert exact_div(N, 2) is None
    assert exact_div(N * S, N + S) is None
    assert exact_div(N, 0) is None
    assert len({floor_div(N, 2), floor_div(N, 3)}) == 2
    assert str(floor_div(N + 1, 2)) == "floor((N + 1)/(2))"
    assert str(maximum(S, N)) == str(maximum(N, S)) == "Max(N, S)"
    assert symbol("M") != N


def test_bounds() -> None:
    assert is_at_least(N + 1, 1)
    assert not is_at_least(N, 1)
    assert is_at_least(N - 1, -1)
    assert not is_at_least(N - S, 0)
    assert is_limited(minimum(S, 1024), S)
    assert not is_limited(minimum(S, 1024), N)
    assert not is_limited(S, S)


@pytest.mark.parametrize(
    "text",
    ["N", "2*N", "N + 1", "-N + 3", "N*S - 2*S + 7", "floor((N + 1)/(2))", "Max(N, S)", "Mod(N, 3)", "Min(512, S)"],
)
def test_reads_back_what_it_writes(text: str) -> None:
    assert str(parse_dim(text)) == text


@pytest.mark.parametrize(
    "text", ["a b", "input.1", "N +", "N/2", "lambda: 0", "N**2", "f(N)", "N//0", "1.5", "True", "((", "x" * 300]
)
def test_any_other_text_is_a_name(text: str) -> None:
    assert parse_dim(text) == symbol(text)


def test_texts_of_exporters() -> None:
    assert parse_dim("2*batch + s//2") == 2 * symbol("batch") + floor_div(symbol("s"), 2)
    assert parse_dim("12") == 12


def test_products_do_not_explode() -> None:
    value: Dim = N + S + 1
    for _ in range(40):
        value = value * value
    assert isinstance(value, Expr)
    assert len(str(value)) < 1000


def test_a_product_that_is_too_large_and_may_be_negative_is_refused() -> None:
    value: Dim = N - S - 1
    with pytest.raises(OverflowError, match="may be negative"):
        for _ in range(40):
            value = value * value


dims = st.recursive(
    st.one_of(st.integers(0, 5), st.sampled_from([N, S])),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(1, 4)).map(lambda pair: floor_div(*pair)),
        st.tuples(inner, st.integers(1, 4)).map(lambda pair: modulo(*pair)),
        st.tuples(inner, inner).map(lambda pair: maximum(*pair)),
        st.tuples(inner, inner).map(lambda pair: minimum(*pair)),
    ),
    max_leaves=6,
)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(dims, dims)
def test_agrees_with_numbers(left: Dim, right: Dim) -> None:
    for n, s in itertools.product((0, 1, 5), (0, 2, 7)):
        sizes = {"N": n, "S": s}
        a, b = evaluate(left, sizes), evaluate(right, sizes)
        assert evaluate(left + right, sizes) == a + b
        assert evaluate(left - right, sizes) == a - b
        assert evaluate(left * right, sizes) == a * b
        assert evaluate(maximum(left, right), sizes) == max(a, b)
        assert evaluate(minimum(left, right), sizes) == min(a, b)
        assert evaluate(at_least_zero(left - right), sizes) == max(a - b, 0)
        if is_at_least(left - right, 1):
            assert a - b >= 1
        quotient = exact_div(left, right)
        if quotient is not None and b:
            assert evaluate(quotient, sizes) * b == a
        if isinstance(left, Expr):
            assert parse_dim(str(left)) == left
