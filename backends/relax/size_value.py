"""Sizes as plain data, and their values in a run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["Formula", "Formulas", "evaluate"]

Formula = int | str | list[Any]
"""A size: a number, the name of a symbolic size, or [operator, operands...]."""

_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "max": max,
    "min": min,
    "<": operator.lt,
    "==": operator.eq,
}


def evaluate(formula: Formula, sizes: Mapping[str, int]) -> int:
    """The value of a derived size; a symbolic size that no tensor has shown yet counts as 1."""
    if isinstance(formula, int):
        return formula
    if isinstance(formula, str):
        return sizes.get(formula, 1)
    if formula[0] == "if":
        return evaluate(formula[2 if evaluate(formula[1], sizes) else 3], sizes)
    name, left, right = formula
    return _ARITHMETIC[name](evaluate(left, sizes), evaluate(right, sizes))


class Formulas:
    """Many formulas that have much in common: each part of them is computed once.

    Args:
        formulas: in the order in which their values are wanted.
    """

    def __init__(self, formulas: Iterable[Formula]) -> None:
        self._places: dict[tuple[Any, ...], int] = {}
        self._wanted = [self._place(formula) for formula in formulas]
        self._steps = list(self._places)

    def values(self, sizes: Mapping[str, int]) -> list[int]:
        """Of all formulas; see `evaluate`."""
        found: list[int] = []
        for kind, *operands in self._steps:
            if kind == "number":
                found.append(operands[0])
            elif kind == "size":
                found.append(sizes.get(operands[0], 1))
            elif kind == "if":
                condition, true, false = operands
                found.append(found[true if found[condition] else false])
            else:
                left, right = found[operands[0]], found[operands[1]]
                undefined = kind in ("//", "%") and right == 0  # in the branch of an "if" that is not taken
                found.append(0 if undefined else _ARITHMETIC[kind](left, right))
        return [found[place] for place in self._wanted]

    def _place(self, formula: Formula) -> int:
        """Which step computes a formula."""
        step: tuple[Any, ...]
        if isinstance(formula, int):
            step = ("number", formula)
        elif isinstance(formula, str):
            step = ("size", formula)
        else:
            step = (formula[0], *(self._place(operand) for operand in formula[1:]))
        return self._places.setdefault(step, len(self._places))
