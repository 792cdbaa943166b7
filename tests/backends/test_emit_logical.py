"""Comparisons: with a NaN each is false, and so its opposite is true."""

import numpy as np

from tests.backends.emitted import agrees
from tests.backends.running import parse

A = np.array([1, 2, np.nan, np.nan, np.inf, -0.0], np.float32)
B = np.array([2, 1, 1, np.nan, np.inf, 0.0], np.float32)


def test_the_opposite_of_a_comparison_is_not_the_other_comparison() -> None:
    model = parse(
        "g (float[6] a, float[6] b) => (bool[6] p, bool[6] q, bool[6] r, bool[6] s) { t = Less(a, b) p = Not(t)"
        " u = Equal(a, b) q = Not(u) r = Xor(t, u) v = GreaterOrEqual(a, b) s = Equal(t, v) }"
    )
    agrees(model, [A, B])


def test_a_nan_is_not_itself() -> None:
    model = parse(
        "g (float[6] a) => (bool[6] p, bool[6] q, bool[6] r, bool[6] s)"
        " { p = Equal(a, a) q = Not(p) r = GreaterOrEqual(a, a) s = LessOrEqual(a, a) }"
    )
    agrees(model, [A])


def test_bool_algebra_broadcasts() -> None:
    model = parse(
        "g (bool[2,1] a, bool[3] b) => (bool[2,3] p, bool[2,3] q, bool[2,3] r, bool[2,3] s)"
        " { p = And(a, b) q = Or(a, b) r = Xor(a, b) s = Equal(a, b) }"
    )
    agrees(model, [np.array([[True], [False]]), np.array([True, False, True])])


def test_where_takes_nothing_from_the_other_side() -> None:
    model = parse("g (bool[6] c, float[6] a) => (float[6] y) { y = Where(c, a, b) }", {"b": np.array(7, np.float32)})
    agrees(model, [np.array([1, 0, 0, 1, 1, 0], bool), A])


def test_unsigned_integers_compare_as_unsigned() -> None:
    model = parse("g (uint8[3] a, uint8[3] b) => (bool[3] p, bool[3] q) { p = Less(a, b) q = Greater(a, b) }")
    agrees(model, [np.array([200, 1, 5], np.uint8), np.array([100, 255, 5], np.uint8)])
