"""Products over an axis that is cut: each piece gives a summand of the result."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.query import constant, input_at, int_attribute, is_op
from passes.tiling.facts import Facts

__all__ = ["FEWEST_FUSED", "Contraction", "contraction_of"]

FEWEST_FUSED = 3
"""Summands of a sum that a compiler which fuses additions adds one after the other, each in the place of the sum before
it (`backends.relax.sums`). Of two, it stores one."""


@dataclass(frozen=True)
class Contraction:
    """A product, and what is added to it.

    Attributes:
        product: A MatMul, Gemm or Conv with a constant weight.
        operand: What it multiplies.
        axis: That is summed over, of the operand.
        weight: The constant.
        weight_axis: That is summed over, of the weight.
        added: The Adds behind it, in order.
        target: The result of the last one, or of the product.
    """

    product: ir.Node
    operand: ir.Value
    axis: int
    weight: ir.Value
    weight_axis: int
    added: tuple[ir.Node, ...]
    target: ir.Value

    @property
    def chain(self) -> set[ir.Value]:
        """The result of the product, and what it becomes."""
        return {node.outputs[0] for node in (self.product, *self.added)}


def contraction_of(facts: Facts, target: ir.Value, inside: Collection[ir.Value]) -> Contraction | None:
    """The product that a value is, but for what is added from outside a segment; `None` if it is something else.

    Args:
        facts: Of the graph.
        target: The value.
        inside: What the segment computes.
    """
    added: list[ir.Node] = []
    node = target.producer()
    while node is not None and is_op(node, "Add"):
        made = [value for value in node.inputs if value in inside]
        if len(made) != 1 or made[0] is None or len(made[0].uses()) != 1 or made[0].is_graph_output():
            return None
        if facts.shape(made[0]) != facts.shape(target):
            return None
        added.insert(0, node)
        node = made[0].producer()
    operands = None if node is None else _operands(facts, node)
    if node is None or operands is None:
        return None
    if any(value in inside for value in node.inputs[2:]):
        return None
    return Contraction(node, *operands, tuple(added), target)


def _operands(facts: Facts, node: ir.Node) -> tuple[ir.Value, int, ir.Value, int] | None:
    """What a product sums over: the operand and its axis, the weight and its axis."""
    operand, weight = input_at(node, 0), input_at(node, 1)
    shape, kernel = facts.shape(operand), facts.shape(weight)
    if operand is None or weight is None or constant(weight) is None or shape is None or kernel is None:
        return None
    if is_op(node, "MatMul") and len(kernel) == 2:
        return operand, len(shape) - 1, weight, 0
    if is_op(node, "Gemm") and not int_attribute(node, "transA", 0):
        return operand, 1, weight, int_attribute(node, "transB", 0)
    if is_op(node, "Conv") and int_attribute(node, "group", 1) == 1:
        return operand, 1, weight, 1
    return None
