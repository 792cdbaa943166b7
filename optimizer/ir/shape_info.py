"""What is known of a value, and the view of a node that shape rules work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias

import onnx_ir as ir

from optimizer.ir.query import input_at, ints_attribute
from optimizer.ir.symbolic import Dim, Expr, is_limited

__all__ = ["UNKNOWN", "Dims", "Info", "NodeView", "Rule", "axes_of", "broadcast", "normal_axis", "tensor"]

Dims: TypeAlias = tuple[Dim, ...]


class Info(NamedTuple):
    """What is known of a value.

    Attributes:
        type: Its type.
        dims: Its shape; `None` when not even the rank is known.
        data: Its elements, when it is a small integer or boolean tensor of rank 0 or 1 and they are known.
    """

    type: ir.TypeProtocol | None = None
    dims: Dims | None = None
    data: Dims | None = None


UNKNOWN = Info()


def tensor(dtype: ir.DataType | None, dims: Iterable[Dim] | None, data: Dims | None = None) -> Info:
    """The `Info` of a tensor."""
    type_ = None if dtype is None else ir.TensorType(dtype)
    return Info(type_, None if dims is None else tuple(dims), data)


class NodeView:
    """A node with what is known of its inputs.

    Attributes:
        node: The node.
        opset: The version of the operators.
        inputs: What is known of each input; an input left out is `None`.
    """

    __slots__ = ("_fresh", "inputs", "node", "opset")

    def __init__(self, node: ir.Node, opset: int, inputs: list[Info | None], fresh: Callable[[], Expr]) -> None:
        self.node = node
        self.opset = opset
        self.inputs = inputs
        self._fresh = fresh

    def info(self, index: int) -> Info:
        """What is known of an input; nothing when it is left out."""
        found = self.inputs[index] if index < len(self.inputs) else None
        return UNKNOWN if found is None else found

    def dims(self, index: int) -> Dims | None:
        """The shape of an input."""
        return self.info(index).dims

    def data(self, index: int) -> Dims | None:
        """The elements of an input."""
        return self.info(index).data

    def ints(self, index: int) -> tuple[int, ...] | None:
        """The elements of an input when all are plain integers."""
        data = self.data(index)
        if data is None:
            return None
        plain = tuple(item for item in data if isinstance(item, int))
        return plain if len(plain) == len(data) else None

    def dtype(self, index: int) -> ir.DataType | None:
        """The element type of an input."""
        type_ = self.info(index).type
        return None if type_ is None else type_.dtype

    def has(self, index: int) -> bool:
        """Whether the input is given."""
        return input_at(self.node, index) is not None

    def fresh(self) -> Expr:
        """A new symbol, for a size of which nothing is known."""
        return self._fresh()

    def unknown_dims(self, rank: int) -> Dims:
        """A shape of which only the rank is known."""
        return tuple(self._fresh() for _ in range(rank))


Rule: TypeAlias = Callable[[NodeView], "Info | list[Info] | None"]
"""Gives what is known of the first output, or of all outputs, or `None` when the rule cannot tell."""


def normal_axis(axis: int, rank: int) -> int | None:
    """The axis counted from the front; `None` when there is no such axis."""
    axis = axis + rank if axis < 0 else axis
    return axis if 0 <= axis < rank else None


def axes_of(view: NodeView, index: int = 1) -> tuple[int, ...] | None:
    """The axes of Squeeze, Unsqueeze or a reduction: an attribute in old opsets, an input in new ones.

    Returns:
        The axes, empty when none are given; `None` when they are not known.
    """
    if view.has(index):
        return view.ints(index)
    return ints_attribute(view.node, "axes") or ()


def broadcast(view: NodeView, shapes: Iterable[Dims | None]) -> Dims | None:
    """The shape of an element-wise operation between these shapes."""
    result: Dims = ()
    for dims in shapes:
        if dims is None:
            return None
        rank = max(len(result), len(dims))
        left = (1,) * (rank - len(result)) + result
        right = (1,) * (rank - len(dims)) + dims
        result = tuple(_broadcast_dim(view, a, b) for a, b in zip(left, right, strict=True))
    return result


def _broadcast_dim(view: NodeView, left: Dim, right: Dim) -> Dim:
    """One of the two is 1, or they are equal, or the operation fails."""
    if left == right or right == 1:
        return left
    if left == 1:
        return right
    if isinstance(left, int) or is_limited(right, left):
        return left
    if isinstance(right, int) or is_limited(left, right):
        return right
    return view.fresh()
