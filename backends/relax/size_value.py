"""Sizes as plain data, and their values in a run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Formula", "evaluate"]

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
