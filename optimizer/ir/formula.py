"""A value as a polynomial of others, so that every way to write `x * 0.5 * (1 + t)` is the same."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from optimizer.ir.match import producer, scalar
from optimizer.ir.query import constant, input_at

__all__ = ["Formula", "Terms", "arithmetic_inputs"]

Terms = dict[str, float]
"""The coefficient of each product of variables: `{"": 1.0, "xx": 2.0}` is `1 + 2 * x * x`."""

_ARITHMETIC = ("Add", "Div", "Mul", "Neg", "Pow", "Sub", "Sum")
_MAX_NODES = 24
_MAX_DEGREE = 4


class Formula:
    """Reads the polynomial that a value is.

    Args:
        variables: The values that stay as they are, each with a letter.
        graph: Nodes of other graphs are not looked into.
        rank: The least number of axes of a variable: a constant of one element with more of them would add some.

    Attributes:
        nodes: The nodes that were read.
    """

    def __init__(self, variables: Mapping[ir.Value, str], graph: ir.Graph | ir.Function | None, rank: int) -> None:
        self.nodes: dict[ir.Node, None] = {}
        self._known: dict[ir.Value, Terms | None] = {value: {letter: 1.0} for value, letter in variables.items()}
        self._graph = graph
        self._rank = rank

    def read(self, value: ir.Value | None) -> Terms | None:
        """The terms, or `None` when the value is no such polynomial, or a long one."""
        if value is None:
            return None
        if value not in self._known:
            self._known[value] = self._computed(value)
        return self._known[value]

    def _computed(self, value: ir.Value) -> Terms | None:
        number = scalar(value)
        if number is not None:
            tensor = constant(value)
            return {"": number} if tensor is not None and len(tensor.shape) <= self._rank else None
        node = producer(value, self._graph, *_ARITHMETIC)
        if node is None or len(self.nodes) >= _MAX_NODES:
            return None
        self.nodes[node] = None
        operands = [self.read(operand) for operand in node.inputs]
        known = [operand for operand in operands if operand is not None]
        return _apply(node.op_type, known) if len(known) == len(operands) and known else None


def arithmetic_inputs(value: ir.Value, graph: ir.Graph | ir.Function | None, depth: int) -> list[ir.Value]:
    """The values from which `value` is computed by arithmetic, itself among them, without constants."""
    found = {value: None}
    for _ in range(depth):
        for inner in list(found):
            node = producer(inner, graph, *_ARITHMETIC)
            for index in range(0 if node is None else len(node.inputs)):
                operand = None if node is None else input_at(node, index)
                if operand is not None and constant(operand) is None:
                    found[operand] = None
    return list(found)


def _apply(op_type: str, operands: list[Terms]) -> Terms | None:
    first = operands[0]
    if op_type in ("Add", "Sum"):
        return _sum(*operands)
    if op_type == "Neg":
        return _times(first, {"": -1.0})
    second = operands[1]
    if op_type == "Sub":
        return _sum(first, _times(second, {"": -1.0}) or {})
    if op_type == "Mul":
        return _times(first, second)
    number = second.get("") if set(second) == {""} else None
    if number is None:
        return None
    if op_type == "Div":
        return _times(first, {"": 1 / number}) if number else None
    return _raised(first, number)


def _raised(base: Terms, exponent: float) -> Terms | None:
    if exponent not in (1, 2, 3):
        return None
    result: Terms | None = base
    for _ in range(int(exponent) - 1):
        result = None if result is None else _times(result, base)
    return result


def _sum(*operands: Terms) -> Terms:
    total: Terms = {}
    for operand in operands:
        for letters, factor in operand.items():
            total[letters] = total.get(letters, 0.0) + factor
    return total


def _times(left: Terms, right: Terms) -> Terms | None:
    total: Terms = {}
    for a, a_factor in left.items():
        for b, b_factor in right.items():
            letters = "".join(sorted(a + b))
            if len(letters) > _MAX_DEGREE:
                return None
            total[letters] = total.get(letters, 0.0) + a_factor * b_factor
    return total
