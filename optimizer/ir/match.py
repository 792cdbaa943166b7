"""Recognizing a formula whatever the order in which an exporter wrote it.

Everything looked at stands in the same graph as the node at which the match begins: what a graph around it computes
once is not to be drawn into a loop.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.provenance import label
from optimizer.ir.query import FLOATS, array, constant, input_at, is_op

__all__ = [
    "broadcast_constant",
    "close",
    "either_order",
    "is_same",
    "power",
    "producer",
    "remove_dead",
    "scalar",
    "survivor",
]

_ROUNDING: dict[ir.DataType | None, float] = {
    ir.DataType.DOUBLE: 1e-9,
    ir.DataType.FLOAT: 1e-5,
    ir.DataType.FLOAT16: 2e-3,
    ir.DataType.BFLOAT16: 8e-3,
}
"""How far a product of a few constants, each rounded to its type, may be from the number that it stands for."""


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element is, else `None`."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return float(tensor.numpy().reshape(-1)[0])


def close(number: float | None, wanted: float, dtype: ir.DataType | None = None) -> bool:
    """Whether a constant is `wanted` within the rounding of an exporter.

    Args:
        number: The constant.
        wanted: What it may stand for.
        dtype: The type in which it was computed; half precision rounds more.
    """
    if number is None:
        return False
    relative = _ROUNDING.get(dtype, _ROUNDING[ir.DataType.FLOAT])
    return math.isclose(number, wanted, rel_tol=relative)


def producer(value: ir.Value | None, graph: ir.Graph | ir.Function | None, *op_types: str) -> ir.Node | None:
    """The node that gives `value`, when it is one of these standard operators and stands in `graph`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.graph is graph and is_op(node, *op_types) else None


def either_order(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The two inputs of a commutative operator, then the other way round."""
    if len(node.inputs) == 2:
        left, right = node.inputs
        if left is not None and right is not None:
            yield left, right
            yield right, left


def is_same(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Whether two values are one, or are computed alike from the same values by nodes of the same graph."""
    if left is right:
        return left is not None
    if left is None or right is None:
        return False
    a, b = left.producer(), right.producer()
    if a is None or b is None or a.graph is not b.graph or len(a.outputs) != 1 or len(b.outputs) != 1:
        return False
    if not is_op(a, "Add", "Cast", "Mul", "Sub") or a.op_identifier() != b.op_identifier():
        return False
    attributes = {name: item.value for name, item in a.attributes.items()}
    return tuple(a.inputs) == tuple(b.inputs) and attributes == {
        name: item.value for name, item in b.attributes.items()
    }


def power(value: ir.Value, graph: ir.Graph | ir.Function | None) -> tuple[ir.Value, float, list[ir.Node]]:
    """Say a value as a power of another: Sqrt, Reciprocal, Pow and `1 / x`, in any nesting.

    Returns:
        The base, which is no such power itself; the exponent; the nodes, from the outermost to the innermost.
    """
    exponent, nodes = 1.0, list[ir.Node]()
    while len(nodes) < 4:
        node = producer(value, graph, "Div", "Pow", "Reciprocal", "Sqrt")
        step = None if node is None else _power_step(node)
        if node is None or step is None or step[0] is None:
            break
        value, exponent = step[0], exponent * step[1]
        nodes.append(node)
    return value, exponent, nodes


def _power_step(node: ir.Node) -> tuple[ir.Value | None, float] | None:
    if node.op_type == "Sqrt":
        return node.inputs[0], 0.5
    if node.op_type == "Reciprocal":
        return node.inputs[0], -1.0
    if node.op_type == "Div":
        return (input_at(node, 1), -1.0) if scalar(node.inputs[0]) == 1 else None
    exponent = scalar(input_at(node, 1))
    return None if exponent not in (0.5, -0.5, -1.0) else (node.inputs[0], exponent)


def survivor(node: ir.Node, root: ir.Node, inside: Collection[ir.Node]) -> str | None:
    """Why a node stays when `root` no longer uses what leads to it, in words; `None` when it falls away.

    Args:
        node: Of which nothing else may need the result, nor anything computed from it.
        root: The last node of the match.
        inside: All nodes of the match.
    """
    for output in node.outputs:
        if output.is_graph_output():
            return f"{output.name!r} is an output of the graph"
        for user, _ in output.uses():
            if user is root:
                continue
            if user not in inside:
                return f"{output.name!r} is used by {label(user)!r} too"
            reason = survivor(user, root, inside)
            if reason is not None:
                return reason
    return None


def remove_dead(editor: Editor, nodes: Iterable[ir.Node]) -> None:
    """Remove those of the few nodes that nothing uses any more, in whatever order they are."""
    left = list(dict.fromkeys(nodes))
    removed = True
    while removed:
        for node in left:
            if node.graph is not None:
                editor.remove_if_unused(node)
        still = [node for node in left if node.graph is not None]
        removed, left = len(still) < len(left), still


def broadcast_constant(value: ir.Value | None, shape: tuple[int, ...]) -> npt.NDArray[np.generic] | None:
    """A constant stretched to `shape`, without axes of size 1 in front; `None` when it does not fit into it."""
    tensor = constant(value)
    if tensor is None or tensor.dtype not in FLOATS:
        return None
    elements = array(value)
    assert elements is not None, "it is constant"
    while elements.ndim > len(shape) and elements.shape[0] == 1:
        elements = elements[0]
    pairs = zip(reversed(elements.shape), reversed(shape), strict=False)
    if elements.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in pairs):
        return None
    return np.ascontiguousarray(np.broadcast_to(elements, shape))
