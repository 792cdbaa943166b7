"""The layers that can be quantized: products and convolutions of an activation with a constant weight.

A layer is taken when

1. it is a Conv, Gemm or MatMul of the main graph, of opset 13 or later, where scales can be given for each channel;
2. nobody asked to leave it out;
3. its weight is a constant of float32, and its other input, which is none, has the same type;
4. a product has a matrix for its weight, and a Gemm neither factors nor a transposed input;
5. it is worth while. Where a target has a tile model, that predicts the layer to take less time in int8, the rounding
   of what it reads counted; where a kernel stores that rounded right away, the layer need only be as fast. Where there
   is no model, a product uses each element of the input often enough: `MIN_REUSE`; what a Conv reads is rounded by the
   layer before it, and it reads a quarter of the bytes.

What is left out is a near miss, with the reason. A layer whose weight is quantized already is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.errors import UnsupportedError
from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import label, origins
from optimizer.ir.query import constant, float_attribute, input_at, int_attribute, is_op
from optimizer.ir.walk import all_nodes
from optimizer.layer_speed import LayerWork, Speed
from optimizer.text import seconds
from passes.quantization.grids import Kind, channel_scales
from passes.quantization.writer import WeightGrids

__all__ = ["LAYERS", "MIN_REUSE", "SKIPS", "Layer", "Selection", "find_layers"]

LAYERS = ("Conv", "Gemm", "MatMul")

SKIPS = ("Add", "AveragePool", "GlobalAveragePool")
"""What reads the rounded form of what a Conv reads, if nothing else asks for it as float32."""

MIN_REUSE = 8
"""Multiplications by each element of the input that make up for rounding it. An int8 product does four times as many
of them at a time as a float32 one, so each saves 3/4 of one; rounding takes about six operations."""

_FIRST_OPSET = 13


@dataclass(frozen=True)
class Layer:
    """A product or convolution.

    Attributes:
        node: Conv `y[N, O, ...]`, Gemm `y[M, O]` or MatMul `y[..., O]`.
        x: Its activation.
        weight: Its weight: `[O, I/G, ...]` (Conv), `[K, O]` or `[O, K]` (Gemm), `[K, O]` (MatMul).
        axis: Which axis of the weight the output channels `O` are.
    """

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    axis: int

    @property
    def array(self) -> npt.NDArray[Any]:
        """The elements of the weight."""
        tensor = constant(self.weight)
        assert tensor is not None, "the weight of a layer is constant"
        return tensor.numpy()

    @property
    def bias(self) -> ir.Value | None:
        """What is added: `B` of a Conv, `C` of a Gemm."""
        return input_at(self.node, 2)

    @property
    def channels(self) -> int:
        """`O`."""
        return int(self.array.shape[self.axis])

    def grids(self, kind: Kind, per_channel: bool) -> WeightGrids:
        """Grids that just hold the weight.

        Args:
            kind: Of the codes.
            per_channel: Whether each output channel has its own scale.
        """
        return WeightGrids(kind, self.axis, channel_scales(self.array, self.axis if per_channel else None, kind))

    @property
    def input_channels_axis(self) -> int:
        """Which axis of the input the reduction runs along."""
        return 1 if self.node.op_type == "Conv" else -1


@dataclass(frozen=True)
class Selection:
    """Which layers are wanted.

    Attributes:
        op_types: Operators.
        exclude: Names of nodes, or of the original nodes that they stand for.
        speed: What the target's tile model predicts; `None` where there is none.
        dynamic: Whether the range of each row is found while the model runs.
        for_size: Whether speed does not matter.
    """

    op_types: tuple[str, ...]
    exclude: frozenset[str] = frozenset()
    speed: Speed | None = None
    dynamic: bool = False
    for_size: bool = False

    def excludes(self, node: ir.Node) -> bool:
        """Whether the node was named."""
        return label(node) in self.exclude or not self.exclude.isdisjoint(origins(node))


def find_layers(editor: Editor, scope: Scope, selection: Selection) -> list[Layer]:
    """The layers of the main graph that can be quantized, in topological order.

    Raises:
        UnsupportedError: A weight holds NaN or infinity.
    """
    found = []
    for node in scope.graph:
        if not is_op(node, *LAYERS):
            continue
        weight = input_at(node, 1)
        if weight is not None and is_op(weight.producer(), "DequantizeLinear"):
            continue
        reason = _unwanted(scope, node, selection) or _operands(editor, node) or _form(editor, node)
        reason = reason or _worth(editor, node, selection)
        if reason:
            editor.miss(node, reason)
            continue
        x = node.inputs[0]
        assert weight is not None and x is not None, "an input that is left out is a reason"
        layer = Layer(node, x, weight, _channel_axis(node))
        if not np.isfinite(layer.array).all():
            raise UnsupportedError(f"its weight {weight.name!r} holds NaN or infinity", node=label(node))
        found.append(layer)
    for node in all_nodes(editor.model):
        if is_op(node, *selection.op_types) and node.graph is not scope.graph:
            editor.miss(node, "it is inside a subgraph or a function, of which nothing is observed")
    return found


def _unwanted(scope: Scope, node: ir.Node, selection: Selection) -> str:
    if scope.opset < _FIRST_OPSET:
        return f"opset {scope.opset} has no scale for each channel, {_FIRST_OPSET} is needed"
    if node.op_type not in selection.op_types:
        return f"{node.op_type} is not among the operators to quantize"
    return "it is excluded by name" if selection.excludes(node) else ""


def _operands(editor: Editor, node: ir.Node) -> str:
    x, weight = input_at(node, 0), input_at(node, 1)
    tensor = constant(weight)
    if x is None or weight is None or tensor is None:
        return f"its operand {'' if weight is None else weight.name!r} is not constant"
    if constant(x) is not None:
        return "both its operands are constant"
    for value, dtype in ((weight, tensor.dtype), (x, editor.shapes.dtype(x))):
        if dtype != ir.DataType.FLOAT:
            return f"{value.name!r} is {'of unknown type' if dtype is None else dtype.name.lower()}, not float"
    return ""


def _form(editor: Editor, node: ir.Node) -> str:
    tensor = constant(node.inputs[1])
    rank = 0 if tensor is None else len(tensor.shape)
    if node.op_type == "Conv":
        return "" if rank > 2 else f"its weight has rank {rank}"
    if rank != 2:
        return f"its weight has rank {rank}, not 2"
    if node.op_type == "MatMul":
        dims = editor.shapes.dims(node.inputs[0])
        return "" if dims is None or len(dims) > 1 else "its input is a vector"
    if int_attribute(node, "transA", 0):
        return "its input is transposed"
    beta = float_attribute(node, "beta", 1.0) if input_at(node, 2) is not None else 1.0
    return "" if float_attribute(node, "alpha", 1.0) == beta == 1.0 else "its factors alpha and beta are not 1"


def _worth(editor: Editor, node: ir.Node, selection: Selection) -> str:
    tensor = constant(node.inputs[1])
    shape = () if tensor is None else tensor.shape.numpy()
    if 0 in shape:
        return "its weight has no elements"
    if selection.for_size:
        return ""
    if selection.speed is not None:
        work = _work(editor, node, shape, selection.dynamic)
        before, after = selection.speed(work)
        times = f"{seconds(after)} in int8, {seconds(before)} in float32"
        # Where the layer itself is as fast, its neighbours gain from what is stored as bytes.
        is_worth = after <= before if work.stored_rounded else after < before
        return "" if is_worth else f"it is predicted to be no faster: {times}"
    reuse = shape[_channel_axis(node)]
    if node.op_type != "Conv" and reuse < MIN_REUSE:
        return f"it multiplies each element of its input {reuse} times only: rounding it would cost more"
    return ""


def _work(editor: Editor, node: ir.Node, weight: Sequence[int], dynamic: bool) -> LayerWork:
    """What a layer has to do, as far as its sizes are known."""
    dims = editor.shapes.dims(node.outputs[0]) or ()
    sizes = [dim if isinstance(dim, int) else None for dim in dims]
    columns = weight[_channel_axis(node)]
    if node.op_type != "Conv":
        depth = math.prod(weight) // columns
        return LayerWork(_product(sizes[:-1]) if sizes else None, depth, columns, read=depth, dynamic=dynamic)
    groups = int_attribute(node, "group", 1)
    images, pixels = (sizes[0], sizes[2:]) if sizes else (None, [])
    read_dims = editor.shapes.dims(node.inputs[0]) or ()
    read = _product([dim if isinstance(dim, int) else None for dim in read_dims[1:]]) if read_dims else None
    count = _product(pixels) if pixels else None
    once = read / count if read is not None and count else float(weight[1] * groups)
    plain = all(n == 1 for name in ("strides", "dilations") for n in _integers(node, name))
    height, width = pixels if len(pixels) == 2 else (None, None)
    rows = None if images is None or count is None else images * count
    depth, three = math.prod(weight[1:]), tuple(weight[2:]) == (3, 3) and plain
    return LayerWork(
        rows, depth, columns // groups, groups, once, images, height, width, three, dynamic, _is_stored_rounded(node)
    )


def _is_stored_rounded(node: ir.Node) -> bool:
    """Whether what a Conv reads is computed, and by its readers nothing else is asked for than its rounded form."""
    x = node.inputs[0]
    return (
        x is not None
        and x.producer() is not None
        and not x.is_graph_output()
        and all(is_op(user, "Conv", *SKIPS) and user.graph is node.graph for user, _ in x.uses())
    )


def _product(sizes: Sequence[int | None]) -> int | None:
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _integers(node: ir.Node, name: str) -> Sequence[int]:
    attribute = node.attributes.get(name)
    return () if attribute is None else attribute.as_ints()


def _channel_axis(node: ir.Node) -> int:
    return 0 if node.op_type == "Conv" or int_attribute(node, "transB", 0) else 1
