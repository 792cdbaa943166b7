"""Winograd's transforms of one axis, as sums and differences of vectors: see `backends.relax.winograd`."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx

from backends.cpu.register_tile import wide
from backends.relax.loops import Expr
from backends.relax.winograd import Matrix

__all__ = ["by_columns", "by_rows"]

_PAIRS = ((1, 2), (3, 4))
"""Points that differ in their sign alone: what they have in common is computed once."""


def by_rows(matrix: Matrix, values: Sequence[Expr], lanes: int) -> list[Expr]:
    """Matrix times vector, for a matrix in which rows of a pair share even columns and have opposite odd ones."""
    result = {}
    for plus, minus in _PAIRS:
        even = _combination((matrix[plus] + matrix[minus]) / 2, values, lanes)
        odd = _combination((matrix[plus] - matrix[minus]) / 2, values, lanes)
        result[plus], result[minus] = even + odd, even - odd
    for row in set(range(len(matrix))) - set(result):
        result[row] = _combination(matrix[row], values, lanes)
    return [result[row] for row in range(len(matrix))]


def by_columns(matrix: Matrix, values: Sequence[Expr], lanes: int) -> list[Expr]:
    """Matrix times vector, for a matrix in which columns of a pair are equal in even rows and opposite in odd ones."""
    sums = list(values)
    differences = list(values)
    for plus, minus in _PAIRS:
        sums[plus] = values[plus] + values[minus]
        differences[plus] = values[plus] - values[minus]
    result = []
    for index, row in enumerate(matrix):
        reduced = row.copy()
        reduced[[minus for _, minus in _PAIRS]] = 0
        result.append(_combination(reduced, differences if index % 2 else sums, lanes))
    return result


def _combination(factors: Matrix, values: Sequence[Expr], lanes: int) -> Expr:
    """The sum of factor * value; what has a factor of one comes first, the rest are multiply-adds."""
    ones = [v for f, v in zip(factors, values, strict=True) if f == 1]
    rest = [(f, v) for f, v in zip(factors, values, strict=True) if f not in (0, 1)]
    total = ones[0] if ones else None
    for value in ones[1:]:
        total = total + value
    for factor, value in rest:
        term = value * wide(tirx.const(float(factor), "float32"), lanes)
        total = term if total is None else total + term
    assert total is not None, "a row of zeros"
    return total
