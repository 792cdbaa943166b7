"""Quantized weights as standard ONNX, in front of the nodes that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.provenance import inherit
from optimizer.ir.query import is_op
from passes.quantization.blocks import SCALE_TYPES, Grid, Quantized
from passes.quantization.nf4 import SCALES_PER_BLOCK, NormalFloats, codebook
from passes.quantization.weight_layers import Layer

__all__ = ["NOTE", "emit_codes", "emit_normal_floats", "replace_weight"]

NOTE = "tersor.quantization"
"""The metadata of a node that gives a dequantized weight: as JSON, the method and the error that it leaves."""

_FLOAT = ir.DataType.FLOAT


def emit_codes(editor: Editor, layer: Layer, quantized: Quantized, grid: Grid) -> ir.Value:
    """`DequantizeLinear` of 4-bit codes. Scales of 16 bits are cast to float32 in front of it.

    ONNX Runtime 1.31 has no `DequantizeLinear` of bfloat16, and its optimizer makes an invalid node of one that is
    given float16 and gives float32. It has one of float16 for scales and weights of that type. Else the weight is cast
    behind it, where the layer does not read float32.

    Returns:
        The weight.
    """
    type_ = ir.DataType.INT4 if grid.symmetric else ir.DataType.UINT4
    stored = layer.stored_scales(quantized.scales.astype(SCALE_TYPES[grid.scale_type]))
    scales = _constant(editor, layer, "scales", ir.tensor(stored))
    direct = stored.dtype == np.float16 and layer.dtype == ir.DataType.FLOAT16
    if grid.scale_type != "float32" and not direct:
        scales = _node(editor, layer, "Cast", [scales], {"to": _FLOAT}, "scales_float32", stored.shape)
    codes = _constant(editor, layer, "codes", _packed(layer.stored_codes(quantized.codes), type_))
    inputs = [codes, scales]
    if quantized.zeros is not None:
        inputs.append(_constant(editor, layer, "zeros", _packed(layer.stored_scales(quantized.zeros), type_)))
    attributes = {"axis": layer.axis(quantized.blocks)}
    if len(quantized.blocks.starts) > 1:
        attributes["block_size"] = quantized.blocks.size
    type_ = ir.DataType.FLOAT16 if direct else _FLOAT
    found = _node(editor, layer, "DequantizeLinear", inputs, attributes, "dequantized", layer.shape, type_)
    return found if direct else _in_type_of(editor, layer, found)


def emit_normal_floats(editor: Editor, layer: Layer, quantized: NormalFloats) -> ir.Value:
    """Codes that look numbers up, times scales that are dequantized themselves. The blocks are of equal length.

    Returns:
        The weight.
    """
    codes = layer.stored_codes(quantized.codes)
    axis = int(layer.transposed)
    count = len(quantized.blocks.starts)
    split = [*codes.shape[:axis], count, codes.shape[axis] // count, *codes.shape[axis + 1 :]]
    spread = [1 if index == axis + 1 else size for index, size in enumerate(split)]

    # The scales were quantized in the order of the matrix `[G, N]`.
    flat = _constant(editor, layer, "scale_codes", ir.tensor(quantized.scale_codes.reshape(-1)))
    outer_scales = quantized.scale_scales
    grouping = {"axis": 0, "block_size": SCALES_PER_BLOCK}
    if outer_scales.size == 1:  # ONNX Runtime takes a vector of one for a single scale, and then refuses a block size.
        outer_scales, grouping = outer_scales.reshape(()), {}
    outer = _constant(editor, layer, "scale_scales", ir.tensor(outer_scales))
    mean = _constant(editor, layer, "scale_mean", ir.tensor(quantized.mean.reshape(())))
    size = (quantized.scale_codes.size,)
    scales = _node(editor, layer, "DequantizeLinear", [flat, outer], grouping, "scales_less_mean", size)
    scales = _node(editor, layer, "Add", [scales, mean], {}, "scales", size)
    if layer.transposed:
        scales = _reshaped(editor, layer, scales, quantized.scale_codes.shape)
        turned = quantized.scale_codes.shape[::-1]
        scales = _node(editor, layer, "Transpose", [scales], {"perm": [1, 0]}, "scales_turned", turned)
    scales = _reshaped(editor, layer, scales, spread)

    stored = _constant(editor, layer, "codes", _packed(codes, ir.DataType.UINT4))
    indices = _node(
        editor, layer, "Cast", [stored], {"to": ir.DataType.INT32}, "indices", codes.shape, ir.DataType.INT32
    )
    numbers = _constant(editor, layer, "codebook", ir.tensor(codebook()))
    found = _node(editor, layer, "Gather", [numbers, indices], {}, "normal_floats", codes.shape)
    blocks = _reshaped(editor, layer, found, split)
    scaled = _node(editor, layer, "Mul", [blocks, scales], {}, "scaled", split)
    return _in_type_of(editor, layer, _reshaped(editor, layer, scaled, codes.shape))


def replace_weight(editor: Editor, layer: Layer, new: ir.Value, note: Mapping[str, object]) -> None:
    """Let the nodes of a layer read another weight, and take the old one out.

    Args:
        editor: Of the model.
        layer: Its weight is used by nothing else.
        new: The weight, made by a node.
        note: What to say about it.
    """
    maker = new.producer()
    assert maker is not None, "it is dequantized by a node"
    if is_op(maker, "Cast") and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer() or maker
    maker.metadata_props[NOTE] = json.dumps(note)
    layer.replace_weight(editor, new)


def _in_type_of(editor: Editor, layer: Layer, weight: ir.Value) -> ir.Value:
    if layer.dtype == _FLOAT:
        return weight
    name = f"dequantized_{layer.dtype.name.lower()}"
    return _node(editor, layer, "Cast", [weight], {"to": layer.dtype}, name, layer.shape, layer.dtype)


def _constant(editor: Editor, layer: Layer, part: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = editor.constant(layer.scope, layer.nodes[0], f"{layer.weight.name}_{part}", tensor)
    if isinstance(tensor, (ir.Tensor, ir.PackedTensor)):
        tensor.name = value.name
    return value


def _packed(codes: npt.NDArray[np.generic], type_: ir.DataType) -> ir.TensorProtocol:
    """Two codes a byte, the first of them in the lower bits, as ONNX stores them."""
    flat = codes.reshape(-1).astype(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return ir.PackedTensor(flat[0::2] | flat[1::2] << 4, type_, shape=ir.Shape(codes.shape))


def _reshaped(editor: Editor, layer: Layer, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    sizes = _constant(editor, layer, "shape", ir.tensor(np.array(shape, np.int64)))
    return _node(editor, layer, "Reshape", [value, sizes], {}, "reshaped", shape)


def _node(
    editor: Editor,
    layer: Layer,
    op_type: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, int | list[int]],
    part: str,
    shape: Sequence[int],
    type_: ir.DataType = _FLOAT,
) -> ir.Value:
    node = ir.node(op_type, inputs, dict(attributes))
    result = node.outputs[0]
    result.name = editor.fresh_name(f"{layer.weight.name}_{part}")
    result.type = ir.TensorType(type_)
    result.shape = ir.Shape(shape)
    inherit(node, layer.nodes)
    layer.scope.graph.insert_before(layer.nodes[0], node)
    return result
