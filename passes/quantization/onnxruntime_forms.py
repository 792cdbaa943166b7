"""Quantized layers in the forms that ONNX Runtime 1.31 has integer kernels for on the CPU.

Everything else it computes in float32 behind the `DequantizeLinear`, which is slower than not to quantize at all:

* a Gemm it multiplies in float32, so a product and a `Sum` take its place; an `Add` it would make a Gemm again;
* a product with a scale for each row it multiplies in float32, so dynamic products get one scale for the whole
  activation (`DynamicQuantizeLinear`, `MatMulInteger`);
* a Conv needs a bias of int32, on the grid of its products, and its result rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import label
from optimizer.ir.query import constant, input_at
from passes.quantization.grids import Grid, Kind
from passes.quantization.layers import Layer
from passes.quantization.writer import WeightGrids, Writer

__all__ = ["multiply_integers", "product_and_sum", "round_bias", "widened_for_bias"]

_LARGEST_BIAS = 2**30
"""Half of what int32 holds: the products that are added to it have a sum that is far smaller."""


def multiply_integers(editor: Editor, scope: Scope, layers: Sequence[Layer], kind: Kind, per_channel: bool) -> None:
    """Dynamic products with one scale for the whole activation.

    Args:
        editor: Of the model.
        scope: The main graph.
        layers: Gemm and MatMul, in topological order.
        kind: Of the weights' codes.
        per_channel: Whether each output channel has its own scale.
    """
    writer = Writer(editor, scope)
    rounded: dict[ir.Value, ir.Node] = {}
    for layer in layers:
        node, x = layer.node, layer.node.inputs[0]
        assert x is not None, "a layer has an activation"
        if x not in rounded:
            name = f"{x.name}_quantized"
            rounded[x] = writer.node("DynamicQuantizeLinear", [x], name, node, dtype=ir.DataType.UINT8, outputs=3)
        codes, scale, zero = rounded[x].outputs
        weight, weight_scale, weight_zero = writer.codes(layer.weight, _as_matrix(layer, kind, per_channel), node)
        name, integer = f"{node.outputs[0].name}", ir.DataType.INT32
        operands = [codes, weight, zero, *([weight_zero] if weight_zero is not None else [])]
        total = writer.node("MatMulInteger", operands, f"{name}_integers", node, dtype=integer)
        total.name = label(node)
        number = writer.node("Cast", total.outputs, f"{name}_float", node, {"to": ir.DataType.FLOAT}).outputs[0]
        factor = writer.node("Mul", [scale, weight_scale], f"{name}_scale", node).outputs[0]
        last = ir.node("Mul", [number, factor], name=f"{label(node)}_scaled")
        _end_with(writer, node, last, input_at(node, 2) if node.op_type == "Gemm" else None, "Add")


def product_and_sum(writer: Writer, layer: Layer, kind: Kind, per_channel: bool, grid: Grid) -> None:
    """A Gemm on static grids as a product, with a `Sum` behind it if it adds something."""
    node, x = layer.node, layer.node.inputs[0]
    assert x is not None, "a layer has an activation"
    weight = writer.weight(layer.weight, _as_matrix(layer, kind, per_channel), node)
    product = ir.node("MatMul", [writer.rounded(x, grid, node), weight], name=label(node))
    _end_with(writer, node, product, input_at(node, 2), "Sum")


def widened_for_bias(layer: Layer, grids: WeightGrids, grid: Grid) -> WeightGrids:
    """Wider grids for channels of a Conv whose bias would not fit into int32 on the grid of its products."""
    bias = constant(layer.bias)
    if bias is None:
        return grids
    least = np.abs(bias.numpy().astype(np.float64)) / (_LARGEST_BIAS * grid.scale)
    scales = np.maximum(grids.scales, least if grids.scales.ndim else least.max(initial=0.0)).astype(np.float32)
    return dataclasses.replace(grids, scales=scales)


def round_bias(writer: Writer, layer: Layer, grids: WeightGrids, grid: Grid) -> None:
    """Put the bias of a Conv on the grid of its products; one that is computed stays."""
    node, value, bias = layer.node, layer.bias, constant(layer.bias)
    if value is None or bias is None:
        return
    scale = np.float32(grid.scale) * grids.scales
    codes = np.rint(bias.numpy().astype(np.float64) / scale).astype(np.int32)
    inputs = [
        writer.constant(f"{value.name}_quantized", codes, node),
        writer.constant(f"{value.name}_scale", scale, node),
    ]
    attributes = {"axis": 0} if scale.ndim else {}
    back = writer.node("DequantizeLinear", inputs, f"{value.name}_dequantized", node, attributes, like=value)
    node.replace_input_with(2, back.outputs[0])


def _as_matrix(layer: Layer, kind: Kind, per_channel: bool) -> WeightGrids:
    """Grids for the weight as `[K, O]`."""
    return dataclasses.replace(layer.grids(kind, per_channel), axis=1, turned=layer.axis == 0)


def _end_with(writer: Writer, node: ir.Node, last: ir.Node, summand: ir.Value | None, sum_type: str) -> None:
    """Put `last`, or the sum of it and a summand, in the place of a layer."""
    if summand is not None:
        graph = writer.scope.graph
        last.outputs[0].name = writer.editor.fresh_name(f"{node.outputs[0].name}_product")
        last.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        graph.insert_before(node, last)
        last = ir.node(sum_type, [last.outputs[0], summand], name=f"{label(node)}_sum")
    writer.editor.substitute(node, last)
