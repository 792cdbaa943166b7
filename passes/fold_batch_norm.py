"""Fold a BatchNormalization into the layer before it.

    BatchNormalization(Conv(x, W, b), scale, B, mean, var)  ->  Conv(x, W * s, b * s + t)
    s = scale / sqrt(var + epsilon),  t = B - mean * s

The layer is a Conv, ConvTranspose or Gemm, or a MatMul of matrices, which gets an Add for `t`. It is done when

1. the normalization is not in training, all its statistics are constant, and only its first output is used;
2. the layer's weight and bias are constant, and nothing else uses the weight (a second copy of it would be needed);
3. nothing else uses the layer's result;
4. no number overflows.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.linear import Linear, Vector, is_inference, linear_before
from optimizer.ir.query import array, float_attribute, is_op
from optimizer.pass_manager import Pass

__all__ = ["FoldBatchNorm"]


@dataclasses.dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Folds BatchNormalization into the layer before it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold wherever it can be done."""
        return rewrite_nodes(model, _fold, ("BatchNormalization",))


def _fold(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "BatchNormalization") or not is_inference(scope, node):
        return
    layer = linear_before(node, 0)
    affine = _scale_and_shift(node)
    if layer is None or affine is None or affine[0].size != layer.channels:
        return
    scale, shift = affine
    if layer.takes_shift:
        new = layer.scaled(editor, scope, scale, shift)
        if new is not None:
            editor.substitute(node, new, [layer.node])
            editor.remove_if_unused(layer.node)
    elif len(editor.shapes.dims(node.inputs[0]) or ()) == 2:
        _fold_into_matmul(editor, scope, node, layer, scale, shift)


def _fold_into_matmul(editor: Editor, scope: Scope, node: ir.Node, layer: Linear, scale: Vector, shift: Vector) -> None:
    product = layer.scaled(editor, scope, scale, None)
    if product is None:
        return
    bias = editor.constant(scope, layer.node, f"{node.outputs[0].name}_bias", shift.astype(layer.weight.dtype))
    editor.substitute(layer.node, product)
    editor.substitute(node, ir.node("Add", inputs=[product.outputs[0], bias]))


def _scale_and_shift(node: ir.Node) -> tuple[Vector, Vector] | None:
    found = [array(value) for value in node.inputs[1:]]
    if any(item is None or item.ndim != 1 for item in found):
        return None
    scale, bias, mean, variance = (item.astype(np.float64) for item in found if item is not None)
    if len({scale.size, bias.size, mean.size, variance.size}) != 1:
        return None
    deviation = variance + float_attribute(node, "epsilon", 1e-5)
    if not (deviation > 0).all():
        return None
    factor = scale / np.sqrt(deviation)
    return factor, bias - mean * factor
