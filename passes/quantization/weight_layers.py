"""The layers of a graph whose weights can be quantized, and their weights as matrices.

1. `MatMul(x, W)` and `Gemm(x, W)` with W `[K, N]`; blocks along the first axis.
2. `Gemm(x, W)` with transB and W `[N, K]`; blocks along the second axis.
3. `Conv(x, W)` with W `[O, I, h, w]`; blocks of input channels at each position of the kernel. When there are fewer of
   them than a block has rows, there is one scale for each output channel.
4. `Gather(W, indices)` on the first axis, the table of an embedding `[rows, K]`; blocks along the second axis.

Several of them can share a weight, if the blocks run along the same axis. A weight is of float32, float16 or bfloat16,
or a `Cast` of such a constant to one of these, as a file is that stores in 16 bits what is computed in 32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.query import constant, int_attribute, is_op
from passes.quantization.blocks import Blocks, Floats

__all__ = ["OPERATORS", "Layer", "find_layers"]

OPERATORS = ("MatMul", "Gemm", "Conv", "Gather")
"""What has weights that can be quantized."""

_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Layer:
    """A weight and the nodes that read it.

    Attributes:
        scope: The graph that they stand in.
        weight: The value that they read: constant, or a constant in another type of float.
        nodes: In the order of the graph.
        transposed: Whether the first axis is that of the outputs (cases 2 to 4).
    """

    scope: Scope
    weight: ir.Value
    nodes: tuple[ir.Node, ...]
    transposed: bool

    @property
    def name(self) -> str:
        """For messages: the node's name, or what it computes."""
        node = self.nodes[0]
        return node.name or node.outputs[0].name or node.op_type

    @property
    def stored(self) -> ir.TensorProtocol:
        """The weight as the model holds it; it is not read before it is asked for its elements."""
        tensor = _stored(self.weight)
        assert tensor is not None, "it is constant"
        return tensor

    @property
    def dtype(self) -> ir.DataType:
        """What the nodes read."""
        maker = self.weight.producer()
        return ir.DataType(int_attribute(maker, "to", 0)) if is_op(maker, "Cast") and maker else self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.stored.shape.numpy())

    @property
    def rows(self) -> int:
        """K, the number of products in each sum."""
        return int(np.prod(self.shape[1:])) if self.transposed else self.shape[0]

    @property
    def columns(self) -> int:
        """N, the number of outputs."""
        return self.shape[0] if self.transposed else self.shape[1]

    def matrix(self) -> Floats:
        """The weight as `[K, N]`; the channels of a convolution's input are next to each other."""
        return np.ascontiguousarray(self._rows_first(self.stored.numpy()).reshape(self.rows, -1), np.float32)

    def _rows_first(self, array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return array.transpose(*range(2, array.ndim), 1, 0) if self.transposed else array

    def blocks(self, size: int) -> Blocks:
        """The rows that share a scale.

        Args:
            size: Of a block; 0 for one scale an output.
        """
        channels = self.shape[1] if self.transposed else self.rows
        whole = not size or channels < size or self.rows == size
        return Blocks.of(self.rows, 0 if whole else size, channels)

    def stored_codes(self, codes: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Codes `[K, N]` in the shape of the weight."""
        return np.ascontiguousarray(self._outputs_first(codes) if self.transposed else codes)

    def stored_scales(self, scales: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Scales or zero points `[G, N]` in the shape that `DequantizeLinear` asks for."""
        if len(scales) == 1:
            return np.ascontiguousarray(scales[0])
        return np.ascontiguousarray(self._outputs_first(scales) if self.transposed else scales)

    def _outputs_first(self, matrix: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        kernel = self.shape[2:]
        positions = int(np.prod(kernel))
        parts = matrix.reshape(*kernel, len(matrix) // positions, -1)
        return parts.transpose(parts.ndim - 1, parts.ndim - 2, *range(len(kernel)))

    def replace_weight(self, editor: Editor, new: ir.Value) -> None:
        """Let the nodes read another weight, and take the old one, which nothing else uses, out of the model."""
        for node in self.nodes:
            for index, value in enumerate(node.inputs):
                if value is self.weight:
                    node.replace_input_with(index, new)
        weight, old = self.weight, self.weight.producer()
        if old is not None:
            editor.remove_if_unused(old)
            editor.drop_weights()
        elif weight.graph is not None and weight.name is not None:
            del weight.graph.initializers[weight.name]
        editor.modified = True

    def axis(self, blocks: Blocks) -> int:
        """The axis of `DequantizeLinear`: that of the blocks, or of the outputs when each has one scale."""
        return int(self.transposed) if len(blocks.starts) > 1 else int(not self.transposed)


def find_layers(editor: Editor, scope: Scope, op_types: Collection[str], excluded: Collection[str]) -> list[Layer]:
    """The layers of one graph in its order; notes what looks like one and cannot be quantized.

    Args:
        editor: Of the model.
        scope: The graph.
        op_types: The operators to look at, of `OPERATORS`.
        excluded: Names of nodes, or of their first outputs, that stay as they are.
    """
    found: dict[ir.Value, Layer] = {}
    refused: dict[ir.Value, None] = {}
    for node in scope.graph:
        if not is_op(node, *OPERATORS):
            continue
        for index in range(min(len(node.inputs), 2)):
            weight = node.inputs[index]
            tensor = _stored(weight)
            if weight is None or tensor is None or weight in refused or not tensor.dtype.is_floating_point():
                continue
            reason = _obstacle(node, index, weight, tensor)
            if node.op_type not in op_types:
                reason = f"{node.op_type} is not among the operators to quantize"
            elif node.name in excluded or node.outputs[0].name in excluded:
                reason = "it is excluded"
            layer = found.pop(weight, Layer(scope, weight, (), _is_transposed(node)))
            if reason is None and layer.transposed != _is_transposed(node):
                reason = f"its weight {weight.name!r} is read along the other axis by {layer.name!r}"
            if reason is not None:
                refused[weight] = None
                editor.miss(node, reason)
                continue
            found[weight] = dataclasses.replace(layer, nodes=(*layer.nodes, node))
    return list(_without_other_readers(editor, found))


def _without_other_readers(editor: Editor, found: dict[ir.Value, Layer]) -> Iterator[Layer]:
    for weight, layer in found.items():
        other = next((user for user, _ in weight.uses() if user not in layer.nodes), None)
        if other is not None:
            name = other.name or other.outputs[0].name
            editor.miss(layer.nodes[0], f"its weight {weight.name!r} is also read by {other.op_type} {name!r}")
        else:
            yield layer


def _obstacle(node: ir.Node, index: int, weight: ir.Value, tensor: ir.TensorProtocol) -> str | None:
    """Why a constant input of a node cannot be quantized."""
    shape = tuple(tensor.shape.numpy())
    place = 0 if node.op_type == "Gather" else 1
    if index != place:
        return f"the constant {weight.name!r} is its input {index}; weights of {node.op_type} are input {place}"
    if tensor.dtype not in _TYPES:
        known = "float32, float16 and bfloat16 are"
        return f"its weight {weight.name!r} is {tensor.dtype.name.lower()}; only {known} quantized"
    if weight.is_graph_output():
        return f"its weight {weight.name!r} is an output of the graph"
    if len(shape) < 3 if node.op_type == "Conv" else len(shape) != 2:
        return f"its weight {weight.name!r} has rank {len(shape)}"
    if 0 in shape:
        return f"its weight {weight.name!r} has no elements"
    if node.op_type == "Gather" and int_attribute(node, "axis", 0) not in (0, -2):
        return f"it does not look up rows of its table {weight.name!r}"
    return None


def _stored(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The constant that a value is, or that it is in another type of float."""
    maker = None if value is None else value.producer()
    if maker is not None and is_op(maker, "Cast") and int_attribute(maker, "to", 0) in _TYPES:
        value = maker.inputs[0]
        tensor = constant(value)
        return tensor if tensor is not None and tensor.dtype in _TYPES else None
    return constant(value)


def _is_transposed(node: ir.Node) -> bool:
    return node.op_type in ("Conv", "Gather") or int_attribute(node, "transB", 0) == 1
