"""What segments have in common that need the same memory and time: a network repeats its layers."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from passes.tiling.facts import Facts
from passes.tiling.pieces import Segment

__all__ = ["signature_of"]


def signature_of(facts: Facts, segment: Segment, dying: Collection[ir.Value]) -> object:
    """Equal for segments of the same operators, connected in the same way, of values with the same shapes and ends."""
    numbers: dict[ir.Value, int] = {}
    nodes = []
    for node in segment.nodes:
        operands = tuple(_operand(facts, value, numbers, dying) for value in node.inputs)
        for value in node.outputs:
            numbers[value] = len(numbers)
        shapes = tuple(
            (facts.shape(value), facts.sizes.dtype(value), value in facts.unstored) for value in node.outputs
        )
        nodes.append((facts.signature(node), operands, shapes))
    return tuple(nodes), tuple((numbers[target], facts.is_apart(target)) for target in segment.targets)


def _operand(facts: Facts, value: ir.Value | None, numbers: dict[ir.Value, int], dying: Collection[ir.Value]) -> object:
    if value is None:
        return None
    if value in numbers:
        return numbers[value]
    numbers[value] = len(numbers)
    return numbers[value], facts.shape(value), facts.sizes.dtype(value), value in dying, facts.is_stored(value)
