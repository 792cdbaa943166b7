"""Sizes as plain data, and their values in a run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["Formula", "Formulas", "evaluate", "with_derived"]

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
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    "and": lambda left, right: bool(left and right),
    "or": lambda left, right: bool(left or right),
    "/": lambda left, right: abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1),
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
    return _applied(name, evaluate(left, sizes), evaluate(right, sizes))


def with_derived(derived: Mapping[str, Formula], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes and those that follow from them.

    Args:
        derived: formulas by name, over the symbolic sizes and one another's names; in any order.
        sizes: the symbolic ones.
    """
    known = dict(sizes)
    for name in derived:
        _settle(name, derived, known)
    return known


def _settle(name: str, derived: Mapping[str, Formula], known: dict[str, int]) -> None:
    """Compute a derived size, after those that it is made of."""
    if name in known or name not in derived:
        return
    parts = [derived[name]]
    while parts:
        part = parts.pop()
        if isinstance(part, list):
            parts += part[1:]
        elif isinstance(part, str):
            _settle(part, derived, known)
    known[name] = evaluate(derived[name], known)


def _applied(operator: str, left: int, right: int) -> int:
    """The value of an operation; a quotient by 0, which no check lets through or no branch takes, is 0."""
    return 0 if operator in ("//", "%", "/") and right == 0 else _ARITHMETIC[operator](left, right)


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
                found.append(_applied(kind, found[operands[0]], found[operands[1]]))
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
