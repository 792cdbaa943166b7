"""Move a bias that is added beside a skip connection to where the connection begins, at a normalization with a bias.

    h = LayerNormalization(x, g, c)                 h = LayerNormalization(x, g, c + b)
    y = Add(MatMul(h, w), d)                   ->   y = Add(MatMul(h, w), d - b @ w)
    s = Add(Add(h, f(y)), b)                        s = Add(h, f(y))

and `Add(h, Gemm(f(y), v, b))` becomes `Gemm(f(y), v, h)`: the place of the bias is free for the connection.

Whatever else reads `h` is a product with a bias of its own, which takes the shift back. It is done when

1. the scale and the bias of the normalization are vectors along the last axis; they, `b`, `w` and `d` are constant, in
   float32 or double;
2. everything that reads `h` but for the sum is such a product, and nothing else reads that product;
3. the sum is read as a whole: nothing needs a part of it;
4. the norm of `b` is at most that of `g`, so that the shift is no larger than what it is added to and the products lose
   no digits; no number overflows.

The order of the summands does not matter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import either_order, producer
from optimizer.ir.query import array, constant, float_attribute, input_at, int_attribute, is_op, only_user
from optimizer.pass_manager import Pass

__all__ = ["HoistBias"]

_TYPES = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


@dataclasses.dataclass(frozen=True)
class HoistBias(Pass):
    """Moves biases along skip connections."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move every bias that can be moved."""
        return rewrite_nodes(model, _hoist, ("Add",))


@dataclasses.dataclass(frozen=True)
class _Sum:
    """Three summands, of which the first two are as large as the sum.

    Attributes:
        skip: What the normalization gives.
        bias: A constant vector.
        inner: An Add of two of them, or a Gemm that adds the bias.
        other: The third summand; `None` when it is the product of the Gemm.
    """

    skip: ir.Value
    bias: ir.Value | None
    inner: ir.Node
    other: ir.Value | None = None

    def without_bias(self) -> ir.Node:
        """What takes the place of the sum."""
        if self.other is not None:
            return ir.node("Add", [self.skip, self.other])
        gemm = self.inner
        return ir.Node("", "Gemm", [*gemm.inputs[:2], self.skip], gemm.attributes.copy(), version=gemm.version)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """A product that reads the normalization, and where its bias stands: in itself, or in the Add after it."""

    product: ir.Node
    holder: ir.Node
    index: int


def _hoist(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "Add"):
        return
    for found in _sums(editor, node):
        norm = producer(found.skip, node.graph, "LayerNormalization")
        shift = _vector(found.bias)
        if norm is None or shift is None or not _takes(editor, norm, shift):
            continue
        readers = _readers(node, found)
        if readers is not None and _move(editor, scope, norm, shift, readers):
            editor.substitute(node, found.without_bias(), [found.inner])
            editor.remove_if_unused(found.inner)
            return


def _sums(editor: Editor, node: ir.Node) -> Iterator[_Sum]:
    """The ways to read a sum of three."""
    dims = editor.shapes.dims(node.outputs[0])
    for left, right in either_order(node):
        inner = producer(left, node.graph, "Add", "Gemm")
        if inner is None or dims is None or only_user(left) is not node:
            continue
        if inner.op_type == "Add":
            for first, second in either_order(inner):
                for skip, other, bias in ((first, second, right), (first, right, second), (right, first, second)):
                    if editor.shapes.dims(skip) == editor.shapes.dims(other) == dims:
                        yield _Sum(skip, bias, inner, other)
        elif editor.shapes.dims(right) == editor.shapes.dims(left) == dims and _has_bias(inner):
            yield _Sum(right, inner.inputs[2], inner)


def _has_bias(gemm: ir.Node) -> bool:
    """Whether a Gemm adds a constant vector as it is."""
    return float_attribute(gemm, "beta", 1.0) == 1 and _vector(input_at(gemm, 2)) is not None


def _vector(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """A constant that is the same for every row, as a vector."""
    tensor = constant(value)
    if tensor is None or tensor.dtype not in _TYPES or tensor.size != max(tensor.shape.numpy()[-1:], default=1):
        return None
    elements = array(value)
    return None if elements is None else elements.reshape(-1)


def _takes(editor: Editor, norm: ir.Node, shift: npt.NDArray[Any]) -> bool:
    """Whether the normalization has a bias that can take the shift."""
    scale, bias, dims = array(input_at(norm, 1)), array(input_at(norm, 2)), editor.shapes.dims(norm.outputs[0])
    if scale is None or bias is None or dims is None:
        return False
    if (
        (scale.shape, bias.shape) != (dims[-1:], dims[-1:])
        or shift.size not in (1, scale.size)
        or scale.dtype != shift.dtype
    ):
        return False
    row = np.broadcast_to(shift, scale.shape).astype(np.float64)
    return bool(np.linalg.norm(row) <= np.linalg.norm(scale.astype(np.float64)))


def _readers(root: ir.Node, found: _Sum) -> list[_Reader] | None:
    """The products that read what the normalization gives; `None` when something else does."""
    readers = []
    if found.skip.is_graph_output():
        return None
    for user, _ in found.skip.uses():
        if user is root or user is found.inner:
            continue
        reader = _reader(user, root)
        if reader is None:
            return None
        readers.append(reader)
    return readers


def _reader(product: ir.Node, root: ir.Node) -> _Reader | None:
    weight = array(input_at(product, 1))
    if product.graph is not root.graph or weight is None or weight.ndim != 2:
        return None
    if is_op(product, "Gemm"):
        return _Reader(product, product, 2) if not int_attribute(product, "transA", 0) and _has_bias(product) else None
    if not is_op(product, "MatMul"):
        return None
    after = only_user(product.outputs[0])
    if after is None or not is_op(after, "Add") or after.graph is not root.graph:
        return None
    index = 1 if after.inputs[0] is product.outputs[0] else 0
    bias = _vector(after.inputs[index])
    return None if bias is None else _Reader(product, after, index)


def _move(editor: Editor, scope: Scope, norm: ir.Node, shift: npt.NDArray[Any], readers: list[_Reader]) -> bool:
    """Add the shift to the bias of the normalization, and take what it brings from the bias of each reader."""
    scale, old = array(norm.inputs[1]), array(norm.inputs[2])
    assert scale is not None and old is not None, "it has been checked"
    row = np.broadcast_to(shift, scale.shape).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        raised = (old.astype(np.float64) + row).astype(old.dtype)
        lowered = [_lowered(reader, row) for reader in readers]
    if not all(np.isfinite(elements).all() for elements in (raised, *lowered)):
        return False
    holders = [(norm, 2), *((reader.holder, reader.index) for reader in readers)]
    for (node, index), elements in zip(holders, (raised, *lowered), strict=True):
        value = node.inputs[index]
        node.replace_input_with(index, editor.constant(scope, node, None if value is None else value.name, elements))
    return True


def _lowered(reader: _Reader, row: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    weight, bias = array(reader.product.inputs[1]), array(reader.holder.inputs[reader.index])
    assert weight is not None and bias is not None, "it has been checked"
    plain = weight.astype(np.float64)
    if int_attribute(reader.product, "transB", 0):
        plain = plain.T
    plain *= float_attribute(reader.product, "alpha", 1.0)
    lowered = bias.reshape(-1).astype(np.float64) - row @ plain
    return lowered.astype(bias.dtype)
