"""Products whose activations get a scale for each row while the model runs; see `passes.quantize_int8`.

    s = Max(ReduceMax(Abs(x)), tiny) / 127        for each row of x: [M, K]
    y = MatMul(DequantizeLinear(QuantizeLinear(x, s)), DequantizeLinear(w8, t))

A row of zeros gets the scale `tiny / 127`, with which all of it is 0. An `x` of more axes is made a matrix first, since
`QuantizeLinear` scales along one axis only; what several layers read is rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import label
from optimizer.ir.shape_info import Dims
from passes.quantization.layers import Layer
from passes.quantization.writer import WeightGrids, Writer

__all__ = ["TINY", "TOP", "Rows", "quantize_rows"]

TOP = 127.0
"""The largest code."""
TINY = TOP * float(np.finfo(np.float32).tiny)
"""Divided by 127 it is the smallest normal float32."""

_FIRST_OPSET = 21
"""From here on `QuantizeLinear` can be told its type without a zero point for each row."""


def quantize_rows(editor: Editor, scope: Scope, layers: Sequence[Layer], grids: Callable[[Layer], WeightGrids]) -> None:
    """Put weights of products on grids, and the rows of their activations on grids of their own.

    Args:
        editor: Of the model.
        scope: The main graph.
        layers: Gemm and MatMul, in topological order.
        grids: For the weight of a layer.
    """
    rows = Rows(editor, Writer(editor, scope))
    for layer in layers:
        # Not `layer.x`: a layer before this one may have replaced it.
        x = layer.node.inputs[0]
        assert x is not None, "a layer has an activation"
        reason = rows.obstacle(x, scope.opset)
        if reason is not None:
            editor.miss(layer.node, reason)
        else:
            weight = rows.writer.weight(layer.weight, grids(layer), layer.node)
            rows.multiply(layer.node, weight, layer.channels)


@dataclass
class Rows:
    """Rounds activations by rows.

    Attributes:
        editor: Of the model.
        writer: Of the graph.
    """

    editor: Editor
    writer: Writer
    _rounded: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def obstacle(self, x: ir.Value, opset: int) -> str | None:
        """Why the rows of an activation cannot be rounded."""
        dims = self.editor.shapes.dims(x)
        if opset < _FIRST_OPSET:
            return f"opset {opset} cannot scale rows, {_FIRST_OPSET} is needed"
        if dims is None:
            return f"the rank of {x.name!r} is not known, so neither are its rows"
        return f"{x.name!r} has no elements" if 0 in dims else None

    def multiply(self, node: ir.Node, weight: ir.Value, channels: int) -> None:
        """Let a product multiply its rows, rounded, with a weight.

        Args:
            node: Gemm or MatMul; of all that read an activation, in the order of the graph.
            weight: Rounded.
            channels: Of the product.
        """
        x = node.inputs[0]
        assert x is not None, "a layer has an activation"
        dims = self.editor.shapes.dims(x)
        assert dims is not None, "there is no obstacle"
        if x not in self._rounded:
            assert weight.shape is not None, "it is a constant, [K, N] where x has more than two axes"
            self._rounded[x] = self._round(x, len(dims), weight.shape.numpy()[0], node)
        operands = [self._rounded[x], weight]
        if len(dims) == 2:
            for index, operand in enumerate(operands):
                node.replace_input_with(index, operand)
            return
        name = f"{node.outputs[0].name}_rows"
        product = self.writer.node("MatMul", operands, name, node)
        product.name = label(node)
        shape = self._shape(x, dims, channels, node)
        self.editor.substitute(node, ir.node("Reshape", [product.outputs[0], shape], name=f"{label(node)}_axes"))

    def _shape(self, x: ir.Value, dims: Dims, channels: int, before: ir.Node) -> ir.Value:
        """What the product has for its shape: that of `x`, with the output channels last."""
        sizes = [dim if isinstance(dim, int) else -1 for dim in dims[:-1]]
        if sizes.count(-1) <= 1:
            return self.writer.constant(f"{x.name}_shape", np.array([*sizes, channels]), before)
        front = self.writer.node("Shape", [x], f"{x.name}_shape", before, {"end": -1}, ir.DataType.INT64).outputs[0]
        last = self.writer.constant(f"{x.name}_channels", np.array([channels]), before)
        return self.writer.node(
            "Concat", [front, last], f"{x.name}_shape", before, {"axis": 0}, ir.DataType.INT64
        ).outputs[0]

    def _round(self, x: ir.Value, rank: int, width: int, before: ir.Node) -> ir.Value:
        """`x` as a matrix of rounded rows, `[M, K]`; K is what the weight has: of `x` it may not be known."""
        writer, name = self.writer, x.name
        if rank > 2:
            shape = writer.constant(f"{name}_matrix", np.array([-1, width]), before)
            x = writer.node("Reshape", [x, shape], f"{name}_rows", before).outputs[0]
        axes = writer.constant(f"{name}_axis", np.array([1]), before)
        tiny = writer.constant(f"{name}_tiny", np.array(TINY, np.float32), before)
        top = writer.constant(f"{name}_top", np.array(TOP, np.float32), before)
        sizes = writer.node("Abs", [x], f"{name}_sizes", before, like=x).outputs[0]
        most = writer.node("ReduceMax", [sizes, axes], f"{name}_largest", before, {"keepdims": 0}).outputs[0]
        most = writer.node("Max", [most, tiny], f"{name}_largest", before).outputs[0]
        scale = writer.node("Div", [most, top], f"{name}_scale", before).outputs[0]
        kind = {"axis": 0, "output_dtype": ir.DataType.INT8}
        codes = writer.node("QuantizeLinear", [x, scale], f"{name}_quantized", before, kind, ir.DataType.INT8, x)
        back = [codes.outputs[0], scale]
        return writer.node("DequantizeLinear", back, f"{name}_dequantized", before, {"axis": 0}, like=x).outputs[0]
