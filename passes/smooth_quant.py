"""Move outliers of activations into weights, where each channel has its own scale.

A few channels of a transformer's activations are a hundred times larger than the others, and one scale for all of them
leaves the others a few codes. For each channel `j` of what products read,

    x W  =  (x / s) (s W),      s_j = max|x_j|^alpha / max|W_j|^(1 - alpha)

is exact but for rounding, and easier to round. See Xiao et al., SmoothQuant (2022), section 4.

1. `1 / s` goes into the scale and bias of a LayerNormalization or RMSNormalization, if nothing but products reads what
   that gives.
2. Elsewhere, as behind a skip connection, it is a `Mul` in front of the products.

All products that read the same have one `s`. A product is taken as `passes.quantization.layers` says. What is smooth
already, with every `s` within a thousandth of 1, stays; and what calibration data gives few rows of: a channel that is
larger later is cut off, and the largest of few numbers is soon exceeded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.errors import InputError, PipelineError
from optimizer.ir.edit import Editor, Scope
from optimizer.ir.near_miss import RewriteResult
from optimizer.ir.query import constant, input_at, int_attribute, is_op
from optimizer.pass_manager import Pass
from passes.quantization.layers import Layer, Selection, find_layers
from passes.quantization.ranges import Largest, observe_channels
from passes.quantization.writer import Writer, drop_orphans, unused_constants

__all__ = ["SmoothQuant"]

_SMOOTH = 1e-3
_LEAST_ROWS = 512
"""With as many, a new row is the largest in one of 512 channels. The head of EfficientNet-lite0, which sees one row for
each image, loses by being smoothed on 20 images."""

_NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")

Vector = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class SmoothQuant(Pass):
    """Scales the channels of activations down and those of weights up, before both are rounded.

    Attributes:
        alpha: How much of the difficulty goes into the weights: 0 is none, 1 is all.
        samples: Calibration data; not an option in a pipeline string, `optimize(calibration=...)` gives it.
    """

    alpha: float = 0.5
    samples: Samples | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise PipelineError(f"smooth-quant{{alpha}} must be from 0 to 1, not {self.alpha}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Smooth what products of the main graph read.

        Raises:
            InputError: There is no calibration data, or an activation is NaN or infinite on it.
            UnsupportedError: A weight holds NaN or infinity.
        """
        editor = Editor(model)
        scope = Scope(model.graph, model.opset_imports.get("", 0))
        unused = unused_constants(scope)
        groups: dict[ir.Value, list[Layer]] = {}
        # What is no product is no near miss of this pass.
        for layer in find_layers(Editor(model), scope, Selection(("Gemm", "MatMul"))):
            groups.setdefault(layer.x, []).append(layer)
        if not groups:
            return RewriteResult(model, False)
        if self.samples is None:
            raise InputError("smooth-quant needs calibration data: give optimize(calibration=[{...}, ...])")
        largest = {value.name or "": Largest(-1) for value in groups}
        observe_channels(model, largest, self.samples)
        for x, layers in groups.items():
            if largest[x.name or ""].rows < _LEAST_ROWS:
                reason = f"calibration gives {largest[x.name or ''].rows} rows of {x.name!r}, {_LEAST_ROWS} are needed"
                editor.miss(layers[0].node, reason)
                continue
            weights = np.max([_largest_of_weight(layer) for layer in layers], axis=0)
            s = _factors(largest[x.name or ""].values, weights, self.alpha)
            if np.abs(s - 1).max(initial=0) > _SMOOTH:
                _smooth(Writer(editor, scope), x, layers, s)
        drop_orphans(scope, unused)
        return RewriteResult(model, editor.modified, tuple(editor.near_misses))


def _factors(activations: Vector, weights: Vector, alpha: float) -> Vector:
    """`s`; 1 for a channel that is always zero, on either side."""
    usable = (activations > 0) & (weights > 0)
    a, w = np.where(usable, activations, 1.0), np.where(usable, weights, 1.0)
    return np.asarray(a**alpha / w ** (1 - alpha))


def _largest_of_weight(layer: Layer) -> Vector:
    """Of each row of the weight as `[K, O]`."""
    return np.asarray(np.abs(layer.array).max(axis=layer.axis), np.float64)


def _smooth(writer: Writer, x: ir.Value, layers: Sequence[Layer], s: Vector) -> None:
    first = layers[0].node
    if not _scale_normalization(writer, x, layers, s):
        factor = writer.constant(f"{x.name}_smoothing", (1 / s).astype(np.float32), first)
        smooth = writer.node("Mul", [x, factor], f"{x.name}_smooth", first, like=x).outputs[0]
        for layer in layers:
            layer.node.replace_input_with(0, smooth)
    for layer in layers:
        along = s[:, None] if layer.axis == 1 else s[None, :]
        content: Any = (layer.array * along).astype(np.float32)
        layer.node.replace_input_with(1, writer.constant(f"{layer.weight.name}_smooth", content, layer.node))


def _scale_normalization(writer: Writer, x: ir.Value, layers: Sequence[Layer], s: Vector) -> bool:
    """Divide what a normalization gives by `s`, if only the layers read it, and its parameters are known."""
    node = x.producer()
    products = {layer.node for layer in layers}
    if node is None or not is_op(node, *_NORMALIZATIONS) or node.outputs[0] is not x or x.is_graph_output():
        return False
    last = writer.editor.shapes.dims(x)
    if last is None or int_attribute(node, "axis", -1) not in (-1, len(last) - 1):
        return False
    old = [input_at(node, index) for index in (1, 2)]
    tensors = [constant(value) for value in old]
    if any(tensor is None and value is not None for tensor, value in zip(tensors, old, strict=True)):
        return False
    if any(user not in products or index != 0 for user, index in x.uses()):
        return False
    name = writer.editor.fresh_name(f"{x.name}_smooth")
    for index, (value, tensor) in enumerate(zip(old, tensors, strict=True)):
        if value is not None and tensor is not None:
            content = (tensor.numpy() / s).astype(np.float32)
            node.replace_input_with(index + 1, writer.constant(f"{value.name}_smooth", content, node))
    # Another name: what it gives is not what it was.
    x.name = name
    return True
