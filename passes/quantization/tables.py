"""Tables of embeddings in int8: a quarter of the bytes of what is often most of a small model.

    Gather(table, i)  ->  DequantizeLinear(Gather(table8, i), scales)

with a scale for each column. It is done when

1. somebody asked for Gather: it saves size, and no time worth speaking of;
2. the table is a constant matrix of float32, of `MIN_ELEMENTS` or more, and rows are taken from it.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.errors import UnsupportedError
from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import label
from optimizer.ir.query import constant, input_at, int_attribute, is_op
from passes.quantization.grids import Kind, channel_scales
from passes.quantization.layers import Selection
from passes.quantization.writer import WeightGrids, Writer

__all__ = ["MIN_ELEMENTS", "quantize_tables"]

MIN_ELEMENTS = 4096


def quantize_tables(editor: Editor, scope: Scope, selection: Selection, kind: Kind, per_channel: bool) -> None:
    """Round the tables of the main graph.

    Args:
        editor: Of the model.
        scope: The main graph.
        selection: Which nodes are wanted.
        kind: Of the codes; symmetric.
        per_channel: Whether each column has its own scale.

    Raises:
        UnsupportedError: A table holds NaN or infinity.
    """
    writer = Writer(editor, scope)
    dtype = ir.DataType.from_numpy(np.dtype(kind.dtype))
    for node in scope.graph:
        table = input_at(node, 0)
        tensor = constant(table) if is_op(node, "Gather") else None
        if table is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        reason = _reason(node, tensor, selection)
        if reason:
            editor.miss(node, reason)
            continue
        array = tensor.numpy()
        if not np.isfinite(array).all():
            raise UnsupportedError(f"its table {table.name!r} holds NaN or infinity", node=label(node))
        grids = WeightGrids(kind, 1, channel_scales(array, 1 if per_channel else None, kind))
        codes, scale, zero = writer.codes(table, grids, node)
        name, y = f"{node.outputs[0].name}_quantized", node.outputs[0]
        rows = writer.node("Gather", [codes, node.inputs[1]], name, node, {"axis": 0}, dtype, y)
        rows.name = label(node)
        inputs = [rows.outputs[0], scale, *([zero] if zero is not None else [])]
        attributes = {"axis": -1} if per_channel else {}
        last = ir.node("DequantizeLinear", inputs, attributes, name=f"{label(node)}_dequantized")
        editor.substitute(node, last)


def _reason(node: ir.Node, tensor: ir.TensorProtocol, selection: Selection) -> str:
    shape = tensor.shape.numpy()
    if selection.excludes(node):
        return "it is excluded by name"
    if len(shape) != 2 or int_attribute(node, "axis", 0) not in (0, -2):
        return f"its table has rank {len(shape)}" if len(shape) != 2 else "it takes columns, not rows"
    size = int(np.prod(shape))
    return f"its table has {size} elements only, {MIN_ELEMENTS} make it worth while" if size < MIN_ELEMENTS else ""
