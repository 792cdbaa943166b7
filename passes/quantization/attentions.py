"""Attention that reads bytes: queries, keys and values on grids of their own; see `passes.quantize_int8`.

    Attention(q, k, v)  ->  Attention(DQ(Q(q)), DQ(Q(k)), DQ(Q(v)))

Both of its products are then products of bytes, and the graph says nothing of the weights between them: a kernel may
round them as finely as its products ask for, which is finer than any grid over [0, 1] that is fixed here.

1. The zero points are those in the middle (uint8: 128). Then what a zero point adds to a sum is known for each query
   before a key is read.
2. Where the three are the parts of one value that nothing else reads, the product with a merged weight, that is rounded
   as a whole, with a scale for each channel, and its codes are split: the product stores bytes only.

An attention is taken when it is a node of the main graph; nobody asked to leave it out; its operands are computed and
float32; it has no cache, of whose values nothing was seen, and no cap, and gives nothing but its result; and where the
tile model of the target predicts it to take less time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.query import constant, float_attribute, input_at, int_attribute, is_op
from optimizer.layer_speed import AttentionWork
from optimizer.text import seconds
from passes.quantization.grids import Grid, Kind
from passes.quantization.writer import Writer

if TYPE_CHECKING:
    from passes.quantization.layers import Selection

__all__ = ["ATTENTION", "MIDDLE", "find_attentions", "round_operands"]

ATTENTION = "Attention"

MIDDLE = Kind(signed=False, symmetric=True)
"""The grids of queries, keys and values."""

_OPERANDS = 3
_PAST = (4, 5)


def find_attentions(editor: Editor, scope: Scope, selection: Selection, onnxruntime: bool) -> list[ir.Node]:
    """Those of the main graph that are to read bytes, in topological order.

    Args:
        editor: Of the model; is told what is left alone, and why.
        scope: The main graph.
        selection: What is wanted.
        onnxruntime: Whether it is for ONNX Runtime's kernels.
    """
    found = []
    for node in scope.graph:
        if not is_op(node, ATTENTION) or any(_is_rounded(value) for value in node.inputs[:_OPERANDS]):
            continue
        reason = _unwanted(node, selection, onnxruntime) or _form(editor, node) or _worth(editor, node, selection)
        if reason:
            editor.miss(node, reason)
        else:
            found.append(node)
    return found


def _is_rounded(value: ir.Value | None) -> bool:
    return value is not None and is_op(value.producer(), "DequantizeLinear")


def _unwanted(node: ir.Node, selection: Selection, onnxruntime: bool) -> str:
    if ATTENTION not in selection.op_types:
        return f"{ATTENTION} is not among the operators to quantize"
    if selection.excludes(node):
        return "it is excluded by name"
    if onnxruntime:
        return "ONNX Runtime has no attention of bytes"
    return "its operands are rounded with calibration data only" if selection.dynamic else ""


def _form(editor: Editor, node: ir.Node) -> str:
    for value in node.inputs[:_OPERANDS]:
        if value is None or constant(value) is not None:
            return "one of its operands is constant"
        dtype = editor.shapes.dtype(value)
        if dtype != ir.DataType.FLOAT:
            return f"{value.name!r} is {'of unknown type' if dtype is None else dtype.name.lower()}, not float"
    if any(input_at(node, index) is not None for index in _PAST):
        return "it has a cache"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "more than its result is asked for"
    return "its scores are capped" if float_attribute(node, "softcap", 0.0) else ""


def _worth(editor: Editor, node: ir.Node, selection: Selection) -> str:
    if selection.for_size:
        return "it has no weights to make smaller"
    if selection.speed is None:
        return "there is no tile model to say that it would be faster"
    work = _work(editor, node)
    if work is None:
        return "the sizes of its heads are not known"
    before, after = selection.speed(work)
    times = f"{seconds(after)} in int8, {seconds(before)} in float32"
    return "" if after < before else f"it is predicted to be no faster: {times}"


def _work(editor: Editor, node: ir.Node) -> AttentionWork | None:
    q, k, v = ([d if isinstance(d, int) else None for d in editor.shapes.dims(x) or ()] for x in node.inputs[:3])
    if not len(q) == len(k) == len(v) or len(q) not in (3, 4):
        return None
    if len(q) == 3:
        heads, key_heads = (int_attribute(node, name, 0) for name in ("q_num_heads", "kv_num_heads"))
        widths = [(q[2], heads), (v[2], key_heads)]
        if not heads or not key_heads or any(width is None or width % count for width, count in widths):
            return None
        size, value_size = (None if width is None else width // count for width, count in widths)
    else:
        heads, size, value_size = q[1] or 0, q[3], v[3]
    if not heads or size is None or value_size is None:
        return None
    return AttentionWork(q[0], heads, q[-2], k[-2], size, value_size)


def round_operands(writer: Writer, nodes: Iterable[ir.Node], grids: Mapping[str, Grid]) -> None:
    """Let attentions read rounded operands.

    Args:
        writer: Of the graph.
        nodes: The attentions.
        grids: Of their operands, by name; all of `MIDDLE`.
    """
    for node in nodes:
        operands = [value for value in node.inputs[:_OPERANDS] if value is not None]
        own = [grids[value.name or ""] for value in operands]
        split = _only_parts(writer.editor, node, operands)
        rounded = (
            [writer.rounded(value, grid, node) for value, grid in zip(operands, own, strict=True)]
            if split is None
            else _rounded_parts(writer, split, own)
        )
        for index, value in enumerate(rounded):
            node.replace_input_with(index, value)
        if split is not None:
            writer.editor.remove_if_unused(split)


def _only_parts(editor: Editor, node: ir.Node, operands: Sequence[ir.Value]) -> ir.Node | None:
    """The Split along the channels of which the operands are all parts, in their order, read by nothing else."""
    split = operands[0].producer()
    if split is None or not is_op(split, "Split") or list(split.outputs) != list(operands):
        return None
    dims = editor.shapes.dims(operands[0])
    if dims is None or int_attribute(split, "axis", 0) not in (-1, len(dims) - 1):
        return None
    if any(value.is_graph_output() or any(user is not node for user, _ in value.uses()) for value in operands):
        return None
    return split if all(_channels(editor, value) for value in operands) else None


def _channels(editor: Editor, value: ir.Value) -> int:
    """Their number; 0 if it is not known."""
    size = (editor.shapes.dims(value) or [0])[-1]
    return size if isinstance(size, int) else 0


def _rounded_parts(writer: Writer, split: ir.Node, grids: Sequence[Grid]) -> list[ir.Value]:
    """Case 2."""
    whole = split.inputs[0]
    assert whole is not None, "a Split has an input"
    name, counts = whole.name, [_channels(writer.editor, value) for value in split.outputs]
    scales = np.repeat(np.array([grid.scale for grid in grids], np.float32), counts)
    zeros = np.full(len(scales), MIDDLE.middle, MIDDLE.dtype)
    kind = ir.DataType.UINT8
    inputs = [
        whole,
        writer.constant(f"{name}_scale", scales, split),
        writer.constant(f"{name}_zero_point", zeros, split),
    ]
    quantize = writer.node("QuantizeLinear", inputs, f"{name}_quantized", split, {"axis": -1}, kind, whole)
    parts = writer.node(
        "Split",
        [quantize.outputs[0], *split.inputs[1:]],
        f"{name}_quantized_part",
        split,
        dict(split.attributes),
        kind,
        split.outputs[0],
        len(counts),
    )
    rounded = []
    for part, old, grid in zip(parts.outputs, split.outputs, grids, strict=True):
        part.type, part.shape = ir.TensorType(kind), None if old.shape is None else old.shape.copy()
        scale = writer.constant(f"{old.name}_scale", np.array(grid.scale, np.float32), split)
        zero = writer.constant(f"{old.name}_zero_point", np.array(grid.zero_point, MIDDLE.dtype), split)
        name = f"{old.name}_dequantized"
        rounded.append(writer.node("DequantizeLinear", [part, scale, zero], name, split, like=old).outputs[0])
    return rounded
