"""AWQ, activation-aware weight quantization (Lin et al. 2023).

Rows of weights that meet large inputs are scaled up before they are rounded, and the inputs down by as much: the
product stays the same, and the error of those rows becomes smaller. The scales are a power of the inputs' mean
magnitude, one exponent for all layers that read the same value, searched for by the error of their products.

Where the inputs come from is scaled instead of them, if that costs nothing:

1. `LayerNormalization` or `RMSNormalization` with constant scale, and bias, that only these layers read.
2. `Mul` by a constant that only these layers read.
3. Else a `Mul` by the reciprocals is put in front of the layers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.provenance import inherit
from optimizer.ir.query import array, constant, input_at, int_attribute, is_op
from passes.quantization.blocks import Floats, Grid
from passes.quantization.inputs import Inputs
from passes.quantization.methods import relative_error
from passes.quantization.rtn import round_to_nearest
from passes.quantization.weight_layers import Layer

__all__ = ["fold_scales", "input_scales", "scaled_inputs"]

_STEPS = 20
"""Exponents that are tried, from 0 (no scaling) to 1, as in the paper."""


def input_scales(layers: Sequence[Layer], block_size: int, grid: Grid, inputs: Inputs) -> Floats | None:
    """What the rows of the layers' weights are best multiplied with `[K]`; `None` if nothing is gained.

    Args:
        layers: They read the same value.
        block_size: As the pass's.
        grid: The codes.
        inputs: Of the layers.
    """

    def errors(scales: Floats) -> npt.NDArray[np.float64]:
        scaled = scaled_inputs(inputs, scales)
        result = []
        for layer, matrix in zip(layers, weights, strict=True):
            rows = matrix * scales[:, None]
            found = round_to_nearest(rows, layer.blocks(block_size), grid)
            result.append(relative_error(rows, found.dequantized(), scaled) ** 2)
        return np.array(result)

    weights = [layer.matrix() for layer in layers]
    best = None
    least = unscaled = errors(np.ones_like(inputs.magnitude))
    for step in range(1, _STEPS + 1):
        scales = _power(inputs.magnitude, step / _STEPS)
        found = errors(scales)
        # No layer is to pay for the others.
        if found.sum() < least.sum() and (found <= unscaled).all():
            best, least = scales, found
    return best


def _power(magnitude: Floats, exponent: float) -> Floats:
    """Scales around one; for inputs that are always zero, as for the smallest others."""
    positive = magnitude[magnitude > 0]
    if not len(positive):
        return np.ones_like(magnitude)
    scales = np.maximum(magnitude, positive.min()) ** np.float32(exponent)
    # A weight that is scaled down by more than this is lost beside the others of its block.
    scales = np.clip(scales / np.sqrt(scales.max() * scales.min()), 1e-4, 1e4)
    return np.asarray(scales, np.float32)


def scaled_inputs(inputs: Inputs, scales: Floats) -> Inputs:
    """What is known of inputs that are divided by scales."""
    return Inputs(inputs.gram / scales / scales[:, None], inputs.magnitude / scales, inputs.rows)


def fold_scales(editor: Editor, layers: Sequence[Layer], scales: Floats) -> list[Layer]:
    """Multiply the rows of weights, and divide what they are multiplied with: the model computes the same.

    Args:
        editor: Of the model.
        layers: They read the same value, as rows that are not turned.
        scales: `[K]`.

    Returns:
        The layers with their new weights.
    """
    nodes = [node for layer in layers for node in layer.nodes]
    value = nodes[0].inputs[0]
    assert value is not None, "a layer has an input"
    reciprocal = np.asarray(1 / scales, layers[0].dtype.numpy())
    maker = value.producer()
    alone = not value.is_graph_output() and all(user in nodes and index == 0 for user, index in value.uses())
    if maker is None or not alone or not _scale_maker(editor, layers[0], maker, reciprocal):
        _scale_value(editor, layers[0], nodes, value, reciprocal)
    return [_with_rows(editor, layer, scales) for layer in layers]


def _scale_maker(editor: Editor, layer: Layer, maker: ir.Node, reciprocal: Floats) -> bool:
    """Let a node give its result times `reciprocal`, by its constants."""
    if is_op(maker, "LayerNormalization", "RMSNormalization"):  # 1
        places = [index for index in (1, 2) if input_at(maker, index) is not None]
        if int_attribute(maker, "axis", -1) not in (-1, _rank(maker) - 1):
            return False
    elif is_op(maker, "Mul"):  # 2
        places = [index for index in (0, 1) if constant(maker.inputs[index]) is not None][:1]
    else:
        return False
    constants = [array(maker.inputs[index]) for index in places]
    if not places or any(each is None or each.shape[-1:] != reciprocal.shape or each.ndim != 1 for each in constants):
        return False
    for index, old in zip(places, constants, strict=True):
        assert old is not None, "it is constant"
        name = f"{maker.inputs[index].name}_scaled"  # type: ignore[union-attr]
        new = editor.constant(layer.scope, maker, name, (np.asarray(old, np.float32) * reciprocal).astype(old.dtype))
        maker.replace_input_with(index, new)
    editor.modified = True
    return True


def _rank(node: ir.Node) -> int:
    shape = node.outputs[0].shape
    return 0 if shape is None else len(shape)


def _scale_value(
    editor: Editor, layer: Layer, nodes: Sequence[ir.Node], value: ir.Value, reciprocal: Floats
) -> None:  # 3
    factor = editor.constant(layer.scope, nodes[0], f"{value.name}_factor", reciprocal)
    product = ir.node("Mul", [value, factor])
    product.outputs[0].name = editor.fresh_name(f"{value.name}_scaled")
    product.outputs[0].type = value.type
    product.outputs[0].shape = None if value.shape is None else value.shape.copy()
    inherit(product, nodes)
    layer.scope.graph.insert_before(nodes[0], product)
    for node in nodes:
        node.replace_input_with(0, product.outputs[0])


def _with_rows(editor: Editor, layer: Layer, scales: Floats) -> Layer:
    rows = layer.stored.numpy().astype(np.float32) * (scales if layer.transposed else scales[:, None])
    new = editor.constant(layer.scope, layer.nodes[0], layer.weight.name, rows.astype(layer.dtype.numpy()))
    layer.replace_weight(editor, new)
    return dataclasses.replace(layer, weight=new)
