"""Products of 4-bit weights whose activations get a scale for each block of a row while the model runs.

    s = Max(ReduceMax(Abs(Reshape(x, [..., K / b, b]))), tiny) / 127        for each block of x: [..., K]
    y = MatMul(DequantizeLinear(QuantizeLinear(x, s)), w)                   both with block_size=b

A large number makes the steps of its own block coarse, and not those of its row: `MatMulNBits` of ONNX Runtime rounds
in the same way at its accuracy level 4. A block of activations never cuts one of the weights, nor the reverse, so that
a kernel sums up bytes over the shorter one of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import gcd

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor
from passes.quantization.dynamic import TINY, TOP, Rows
from passes.quantization.writer import Writer

__all__ = ["ActivationBlocks"]

_SHORTEST = 32
"""Shorter blocks take longer to scale than to multiply."""
_OF_WHOLE_OUTPUTS = 128
"""Where all weights of an output share a scale, and give no block."""


@dataclass
class ActivationBlocks:
    """Rounds activations by blocks; by rows, where no block divides a row.

    Attributes:
        writer: Of the graph.
        block_size: Weights that share a scale, 0 for all of an output.
        rows: For the others.
    """

    writer: Writer
    block_size: int
    rows: Rows
    _rounded: dict[ir.Value, ir.Value] = field(default_factory=dict)

    @classmethod
    def of(cls, editor: Editor, writer: Writer, block_size: int) -> ActivationBlocks:
        """With rows of their own."""
        return cls(writer, block_size, Rows(editor, writer))

    def block(self, depth: int) -> int:
        """Neighbours in a row of so many elements that share a scale; 0 where all of it do."""
        block = gcd(depth, max(self.block_size, _SHORTEST) if self.block_size else _OF_WHOLE_OUTPUTS)
        return block if block >= _SHORTEST else 0

    def multiply(self, node: ir.Node, weight: ir.Value, depth: int, columns: int) -> None:
        """Let a product multiply its activations, rounded, with a weight.

        Args:
            node: Gemm or MatMul; of all that read an activation, in the order of the graph.
            weight: Of 4 bits.
            depth: Elements in a row.
            columns: Of the product.
        """
        x = node.inputs[0]
        assert x is not None, "a layer has an activation"
        block = self.block(depth)
        if not block:
            self.rows.multiply(node, weight, columns)
            return
        if x not in self._rounded:
            self._rounded[x] = self._round(x, depth, block, node)
        node.replace_input_with(0, self._rounded[x])

    def _round(self, x: ir.Value, depth: int, block: int, before: ir.Node) -> ir.Value:
        writer, name = self.writer, x.name
        dims = self.rows.editor.shapes.dims(x)
        assert dims is not None, "there is no obstacle"
        rank = len(dims)
        cut = writer.constant(f"{name}_cut", np.array([0] * (rank - 1) + [depth // block, block]), before)
        last = writer.constant(f"{name}_axis", np.array([rank]), before)
        tiny = writer.constant(f"{name}_tiny", np.array(TINY, np.float32), before)
        top = writer.constant(f"{name}_top", np.array(TOP, np.float32), before)
        blocks = writer.node("Reshape", [x, cut], f"{name}_blocks", before).outputs[0]
        sizes = writer.node("Abs", [blocks], f"{name}_sizes", before).outputs[0]
        most = writer.node("ReduceMax", [sizes, last], f"{name}_largest", before, {"keepdims": 0}).outputs[0]
        most = writer.node("Max", [most, tiny], f"{name}_largest", before).outputs[0]
        scale = writer.node("Div", [most, top], f"{name}_scale", before).outputs[0]
        along = {"axis": rank - 1, "block_size": block}
        kind = {**along, "output_dtype": ir.DataType.INT8}
        codes = writer.node("QuantizeLinear", [x, scale], f"{name}_quantized", before, kind, ir.DataType.INT8, x)
        back = [codes.outputs[0], scale]
        return writer.node("DequantizeLinear", back, f"{name}_dequantized", before, along, like=x).outputs[0]
