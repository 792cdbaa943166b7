"""Fold a multiplication or addition of a constant into the layer before it.

    Mul(Conv(x, W, b), c)  ->  Conv(x, W * c, b * c)         also Div
    Add(Conv(x, W, b), c)  ->  Conv(x, W, b + c)             also Sub, from either side

The layer is a Conv, ConvTranspose or Gemm, or a BatchNormalization outside training; a MatMul by a matrix takes a
factor only, since ONNX has no place for a bias in it. It is done when

1. `c` is constant and finite, and is one number or one for each channel: it does not stretch the shape;
2. the layer's weight and bias are constant, and nothing else uses the weight (a second copy of it would be needed);
3. nothing else uses the layer's result;
4. the types are floating point, and no number overflows.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.linear import Linear, Normalization, Vector, linear_before, normalization_before
from optimizer.ir.query import array, is_op
from optimizer.pass_manager import Pass

__all__ = ["FoldAffine"]


@dataclasses.dataclass(frozen=True)
class FoldAffine(Pass):
    """Folds Mul, Div, Add and Sub of constants into the layer before them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold wherever it can be done; a chain folds from its front."""
        return rewrite_nodes(model, _fold, ("Add", "Div", "Mul", "Sub"))


def _fold(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return
    for index in (0, 1):
        layer = linear_before(node, index) or normalization_before(editor, scope, node, index)
        if layer is None:
            continue
        affine = _scale_and_shift(node, layer, layer_is_left=index == 0)
        if affine is None:
            return
        new = layer.scaled(editor, scope, *affine)
        if new is not None:
            editor.substitute(node, new, [layer.node])
            editor.remove_if_unused(layer.node)
        return


def _scale_and_shift(
    node: ir.Node, layer: Linear | Normalization, *, layer_is_left: bool
) -> tuple[Vector, Vector | None] | None:
    operand = _per_channel(node.inputs[1 if layer_is_left else 0], layer)
    if operand is None:
        return None
    one = np.ones_like(operand)
    match node.op_type:
        case "Mul":
            return operand, None
        case "Div":
            return (1 / operand, None) if layer_is_left and operand.all() else None
        case "Add":
            return one, operand
        case _:
            return (one, -operand) if layer_is_left else (-one, operand)


def _per_channel(value: ir.Value | None, layer: Linear | Normalization) -> Vector | None:
    """The constant as one number for each channel of the layer's output."""
    elements = array(value)
    if elements is None or elements.ndim > layer.least_output_rank or elements.dtype != layer.weight.dtype:
        return None
    plain = elements.astype(np.float64)
    if not np.isfinite(plain).all():
        return None
    if plain.size == 1:
        return np.full(layer.channels, plain.reshape(-1)[0])
    axis = plain.ndim - layer.channel_axis_from_end
    if axis < 0 or plain.size != layer.channels or plain.shape[axis] != layer.channels:
        return None
    return plain.reshape(-1)
