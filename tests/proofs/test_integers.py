"""Integer arithmetic: wrapping, truncating division, and the symbolic arithmetic on sizes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import z3

from optimizer.ir.data_rules import DATA_RULES
from optimizer.ir.symbolic import Dim, Expr, at_least_zero, exact_div, floor_div, is_at_least, modulo, symbol
from tests.proofs.solver import counterexample, prove

n, d, k = z3.Ints("n d k")


def truncated(numerator: Any, denominator: Any) -> Any:
    """ONNX's integer division. z3 divides so that the remainder is never negative."""
    quotient = z3.If(numerator >= 0, numerator, -numerator) / z3.If(denominator >= 0, denominator, -denominator)
    return z3.If((numerator >= 0) == (denominator >= 0), quotient, -quotient)


def floored(numerator: Any, denominator: Any) -> Any:
    return z3.If(denominator > 0, numerator / denominator, -numerator / -denominator)


def test_truncating_division_rounds_down_what_is_not_negative() -> None:
    prove(truncated(n, d) == floored(n, d), n >= 0, d > 0)
    assert counterexample(truncated(n, d) == floored(n, d), n < 0, d > 0) is not None
    assert counterexample(truncated(n, d) == floored(n, d), n >= 0, d < 0) is not None


def test_a_division_without_a_remainder_is_the_same_for_all_signs() -> None:
    prove(truncated(k * d, d) == k, d != 0)
    assert counterexample(truncated(k * d + 1, d) == k, d > 1) is not None


def test_the_remainder_of_what_is_not_negative() -> None:
    """Mod takes the sign of the divisor, or with fmod that of the dividend: for sizes they agree."""
    prove(n - d * truncated(n, d) == n % d, n >= 0, d > 0)
    assert counterexample(n - d * truncated(n, d) == n % d, n < 0, d > 0) is not None


@pytest.mark.parametrize("bits", [8, 32, 64])
def test_constants_one_after_the_other_wrap_around_alike(bits: int) -> None:
    p, q, s = z3.BitVecs("p q s", bits)
    prove((p + q) + s == p + (q + s))
    if bits == 8:  # Products of wider ones are beyond z3; the argument does not depend on the width.
        prove((p * q) * s == p * (q * s))
    assert counterexample((p + q) * s == p + q * s) is not None


def test_products_wrap_around_alike_in_every_width() -> None:
    """Taking the remainder by `2 ** bits` may be done at any time."""
    a, b, c = z3.Ints("a b c")
    for bits in (8, 16):
        size = 2**bits
        for left, right in itertools.product((0, 1, 3, size - 1, size // 2), repeat=2):
            prove(((a * left) % size * right) % size == (a * (left * right % size)) % size)
    prove((a + b) + c == a + (b + c))


def test_integer_division_by_a_power_of_two_is_no_shift() -> None:
    """Which is why Div becomes Mul for floating-point numbers only, and never a shift."""
    p = z3.BitVec("p", 8)
    assert counterexample(p / 2 == p >> 1) is not None


# --- The symbolic arithmetic of simplify-shapes, tried on all small sizes ---

SIZES = range(5)


def value(dim: Dim, sizes: dict[str, int]) -> int | None:
    """The number that a polynomial is; `None` when it has a symbol that is none of the sizes."""
    if isinstance(dim, int):
        return dim
    if not dim.symbols <= set(sizes):
        return None
    total = 0
    for monomial, coefficient in dim.terms.items():
        product = coefficient
        for name in monomial:
            product *= sizes[name]
        total += product
    return total


def polynomials() -> list[Dim]:
    a, b = symbol("a"), symbol("b")
    return [0, 1, 2, 3, 6, a, b, a + 1, 2 * a, 2 * a + 2, a * b, 3 * a * b, a - b, a * a + a, 4 * b + 2 * a, -a, a - 3]


def assignments() -> list[dict[str, int]]:
    return [{"a": a, "b": b} for a in SIZES for b in SIZES]


def test_sums_and_products() -> None:
    for left, right in itertools.product(polynomials(), repeat=2):
        for sizes in assignments():
            p, q = value(left, sizes), value(right, sizes)
            assert p is not None
            assert q is not None
            assert value(left + right, sizes) == p + q
            assert value(left - right, sizes) == p - q
            assert value(left * right, sizes) == p * q


def test_exact_quotients() -> None:
    found = 0
    for numerator, denominator in itertools.product(polynomials(), repeat=2):
        quotient = exact_div(numerator, denominator)
        for sizes in assignments() if quotient is not None else ():
            by = value(denominator, sizes)
            if by:
                assert value(quotient if quotient is not None else 0, sizes) == (value(numerator, sizes) or 0) / by
                found += 1
    assert found > 500
    assert exact_div(symbol("a") + 1, 2) is None
    assert exact_div(symbol("a"), symbol("b")) is None


def test_what_is_called_at_least_a_bound_is() -> None:
    for dim, bound in itertools.product(polynomials(), (-1, 0, 1, 2)):
        if is_at_least(dim, bound):
            assert all((value(dim, sizes) or 0) >= bound for sizes in assignments())
    assert not is_at_least(symbol("a") - 1, 0)
    assert not is_at_least(symbol("a"), 1)


def test_rounded_quotients_remainders_and_maxima() -> None:
    for numerator, denominator in itertools.product(polynomials(), repeat=2):
        if denominator == 0 or not (is_at_least(numerator, 0) and is_at_least(denominator, 0)):
            continue
        results = {floor_div: int.__floordiv__, modulo: int.__mod__}
        for compute, plain in results.items():
            result = compute(numerator, denominator)
            for sizes in assignments():
                p, q, found = value(numerator, sizes), value(denominator, sizes), value(result, sizes)
                if q and p is not None and found is not None:
                    assert found == plain(p, q)
    for dim in polynomials():
        for sizes in assignments():
            found, plain_value = value(at_least_zero(dim), sizes), value(dim, sizes)
            assert found is None or plain_value is None or found == max(0, plain_value)


@pytest.mark.parametrize(("left", "right"), [(-7, 2), (7, -2), (-7, -2), (7, 2), (0, 3), (-6, 3)])
def test_a_division_of_plain_numbers_truncates(left: int, right: int) -> None:
    from optimizer.ir.data_rules import _divide

    assert _divide(left, right) == int(left / right)


def test_a_division_that_may_round_is_not_taken_apart_when_it_may_be_negative() -> None:
    from optimizer.ir.data_rules import _divide

    assert "Div" in DATA_RULES
    assert _divide(symbol("a") - 3, 2) is None
    assert isinstance(_divide(symbol("a") + 3, 2), Expr)
    assert _divide(2 * symbol("a") - 6, 2) == symbol("a") - 3
    assert _divide(symbol("a"), 0) is None
