"""Operators that lose more than a rounding error in bfloat16, with what feeds them.

A bfloat16 has 8 bits: a position of 1,000 is off by up to 2, and 257 cannot be told from 256.

1. `DELICATE`: what they sum, divide or locate needs more bits: running sums, logarithms of sums, coordinates, scales of
   quantized numbers, recurrences that round in each step.
2. `MAGNIFYING`: their result is off by as much as their *argument* is, in absolute terms: angles, exponents, numbers
   that are cut to integers. What makes the argument stays float32 as well, as far as it is arithmetic with constants,
   or stems from integers alone (a table of positions).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator

import onnx_ir as ir

from optimizer.ir.query import constant, int_attribute

__all__ = ["DELICATE", "MAGNIFYING", "TRANSPARENT", "sensitive_nodes"]

# fmt: off
DELICATE = frozenset({
    "AffineGrid", "Bernoulli", "CumProd", "DequantizeLinear", "Det", "DFT", "DynamicQuantizeLinear", "GridSample",
    "GRU", "LSTM", "MaxRoiPool", "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "QLinearConv",
    "QLinearMatMul", "QuantizeLinear", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "RNN", "RoiAlign",
    "SoftmaxCrossEntropyLoss", "STFT",
})
MAGNIFYING = frozenset({"Ceil", "Cos", "CumSum", "Exp", "Floor", "Log", "Mod", "Pow", "Round", "Sin", "Tan"})
"""`Cast` to an integer is one, too."""

_ARITHMETIC = frozenset({"Abs", "Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Reciprocal", "Sqrt", "Sub"})
_MOVING = frozenset({
    "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze", "Where",
})
TRANSPARENT = _ARITHMETIC | _MOVING
"""A large number can go through them."""
_TABULATING = TRANSPARENT | MAGNIFYING | {"ConstantOfShape", "MatMul", "Range"}
# fmt: on

_GREATEST_EXPONENT = 4
"""A constant power up to this multiplies the relative error by no more."""

IsFloat = Callable[[ir.Value], bool]


def sensitive_nodes(nodes: Iterable[ir.Node], is_float: IsFloat, keep: Collection[str] = ()) -> set[ir.Node]:
    """The nodes that stay in float32.

    Args:
        nodes: Those of a graph and of the graphs inside it, each after what it reads.
        is_float: Whether a value is a float32 tensor.
        keep: Further operators to be kept so.
    """
    found: set[ir.Node] = set()
    tables: set[ir.Value] = set()
    waiting: list[ir.Node] = []
    for node in nodes:
        if node.domain:
            continue
        if node.op_type in _TABULATING and all(_is_table(value, tables, is_float) for value in node.inputs):
            tables.update(node.outputs)
        if node.op_type in DELICATE or node.op_type in keep:
            found.add(node)
        elif _magnifies(node):
            waiting.append(node)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(_makers_of_arguments(node, tables, is_float))
    return found


def _is_table(value: ir.Value | None, tables: set[ir.Value], is_float: IsFloat) -> bool:
    return value is None or value in tables or not is_float(value) or _is_small_constant(value)


def _is_small_constant(value: ir.Value) -> bool:
    """A scalar, or elements along one axis: no matrix of weights."""
    tensor = constant(value)
    return tensor is not None and math.prod(tensor.shape.numpy()) == max(tensor.shape.numpy(), default=1)


def _magnifies(node: ir.Node) -> bool:
    if node.op_type == "Cast":
        return ir.DataType(int_attribute(node, "to", 0)).is_integer()
    if node.op_type != "Pow":
        return node.op_type in MAGNIFYING
    exponent = constant(node.inputs[1])
    return exponent is None or bool((abs(exponent.numpy()) > _GREATEST_EXPONENT).any())


def _makers_of_arguments(node: ir.Node, tables: set[ir.Value], is_float: IsFloat) -> Iterator[ir.Node]:
    for value in node.inputs:
        maker = None if value is None or not is_float(value) else value.producer()
        if maker is None or maker.domain:
            continue
        if value in tables or (maker.op_type in TRANSPARENT and _one_argument(maker, is_float)):
            yield maker


def _one_argument(node: ir.Node, is_float: IsFloat) -> bool:
    """Whether at most one float input is computed; `Cast` of a float to an integer is arithmetic here as well."""
    return sum(value is not None and is_float(value) and constant(value) is None for value in node.inputs) <= 1
