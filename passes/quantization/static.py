"""Layers on grids that calibration data gives; see `passes.quantize_int8`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.ir.edit import Editor, Scope
from passes.quantization.attentions import MIDDLE, round_operands
from passes.quantization.between import Rounding, plan_rounding
from passes.quantization.bias_correction import can_correct, correct_bias
from passes.quantization.calibrators import calibrate
from passes.quantization.grids import Grid, Kind
from passes.quantization.histogram import Histogram
from passes.quantization.layers import Layer
from passes.quantization.onnxruntime_forms import product_and_sum, round_bias, widened_for_bias
from passes.quantization.ranges import Means, Powers, observe_ranges
from passes.quantization.sensitive import is_depthwise, lost, outliers
from passes.quantization.writer import Writer

__all__ = ["StaticPlan", "quantize_static"]


@dataclass(frozen=True)
class StaticPlan:
    """What grids are wanted.

    Attributes:
        weights: For weights.
        activations: For activations.
        per_channel: Whether each output channel has its own scale.
        method: How ranges are found: one of `passes.quantization.calibrators.METHODS`.
        percentile: For that method.
        bias_correction: Whether the mean error of a layer is taken out of its bias.
        onnxruntime: Whether the forms are to be those that ONNX Runtime computes in integers.
        for_size: Whether nothing that becomes smaller is to be left alone.
    """

    weights: Kind
    activations: Kind
    per_channel: bool
    method: str
    percentile: float
    bias_correction: bool
    onnxruntime: bool
    for_size: bool

    def corrects(self, layer: Layer) -> bool:
        """Whether the mean error of a layer is to be taken out of its bias."""
        return self.bias_correction and can_correct(layer)

    def may_leave(self, layer: Layer) -> bool:
        """Whether a layer may stay float32 for what it loses; ONNX Runtime would round it all the same."""
        return is_depthwise(layer) and not self.for_size and not self.onnxruntime

    def grid(self, seen: Histogram, kind: Kind | None = None) -> Grid:
        """For an activation, of another kind if one is given."""
        kind = kind or self.activations
        return kind.over(*calibrate(seen, kind, self.method, self.percentile))


def quantize_static(
    editor: Editor,
    scope: Scope,
    layers: Sequence[Layer],
    attentions: Sequence[ir.Node],
    plan: StaticPlan,
    samples: Samples,
) -> None:
    """Put activations and weights of layers on grids.

    Args:
        editor: Of the model.
        scope: The main graph.
        layers: In topological order.
        attentions: In topological order.
        plan: What grids are wanted.
        samples: Calibration data.
    """
    rounding = plan_rounding(editor, scope, layers, plan.onnxruntime)
    attended = [value.name or "" for node in attentions for value in node.inputs[:3] if value is not None]
    seen, powers, means = _observed(editor, rounding, attended, plan, samples)
    left = _sensitive(editor, rounding, plan, seen, powers)
    if left:
        rounding = plan_rounding(editor, scope, [layer for layer in layers if layer not in left], plan.onnxruntime)
        missing = [name for name in dict.fromkeys(rounding.grids().values()) if name not in seen]
        seen |= observe_ranges(editor.model, missing, samples) if missing else {}
    leaders = rounding.grids()
    grids = {name: plan.grid(seen[name]) for name in set(leaders.values())}
    middle = {name: plan.grid(seen[name], MIDDLE) for name in attended}
    writing = _Writing(Writer(editor, scope), plan, {name: grids[leader] for name, leader in leaders.items()})
    by_node = {layer.node: layer for layer in rounding.layers}
    for node in list(scope.graph):
        layer = by_node.get(node)
        if layer is not None:
            mean = means.get(layer.x.name or "") if plan.corrects(layer) else None
            writing.layer(layer, None if mean is None else mean.values)
        else:
            for index in rounding.reads.get(node, ()):
                writing.read(node, index)
    round_operands(writing.writer, attentions, middle)


_Observed = tuple[dict[str, Histogram], dict[str, Powers], dict[str, Means]]


def _observed(
    editor: Editor, rounding: Rounding, attended: Sequence[str], plan: StaticPlan, samples: Samples
) -> _Observed:
    """Of values by name: their numbers, the mean squares around depthwise convolutions, the means for biases."""
    means = {layer.x.name or "": Means(layer.input_channels_axis) for layer in rounding.layers if plan.corrects(layer)}
    depthwise = [layer for layer in rounding.layers if plan.may_leave(layer)]
    powers = {value.name or "": Powers(1) for layer in depthwise for value in (layer.x, layer.node.outputs[0])}
    names = list(dict.fromkeys((*rounding.grids().values(), *means, *attended)))
    return observe_ranges(editor.model, names, samples, means, powers), powers, means


def _sensitive(
    editor: Editor, rounding: Rounding, plan: StaticPlan, seen: Mapping[str, Histogram], powers: Mapping[str, Powers]
) -> list[Layer]:
    """The depthwise convolutions that are better left alone; says so."""
    leaders = rounding.grids()
    errors = {
        layer: lost(layer, plan.grid(seen[leaders[layer.x.name or ""]]), plan.weights, plan.per_channel, powers)
        for layer in rounding.layers
        if plan.may_leave(layer)
    }
    found = outliers(errors)
    for layer in found:
        editor.miss(layer.node, f"its result would be off by {errors[layer]:.1%}, and bytes are no faster for it")
    return found


@dataclass(frozen=True)
class _Writing:
    """Puts layers, and what lies between them, on grids.

    Attributes:
        writer: Of the graph.
        plan: What grids are wanted.
        grids: Of the rounded values, by name: a layer before may have put another value in the place of one.
    """

    writer: Writer
    plan: StaticPlan
    grids: Mapping[str, Grid]

    def grid(self, value: ir.Value | None) -> Grid:
        """That of a value."""
        assert value is not None, "what is left out is not rounded"
        return self.grids[value.name or ""]

    def read(self, node: ir.Node, index: int) -> None:
        """Let a node read an input rounded."""
        value = node.inputs[index]
        assert value is not None, "what is left out is not rounded"
        node.replace_input_with(index, self.writer.rounded(value, self.grid(value), node))

    def layer(self, layer: Layer, means: npt.NDArray[np.float64] | None) -> None:
        """Quantize a layer; with the means of its input's channels its bias is corrected."""
        node, plan, grid = layer.node, self.plan, self.grid(layer.node.inputs[0])
        grids = layer.grids(plan.weights, plan.per_channel)
        if plan.onnxruntime and node.op_type == "Conv":
            grids = widened_for_bias(layer, grids, grid)
        if means is not None:
            correct_bias(self.writer, layer, grids, means)
        if plan.onnxruntime and node.op_type == "Gemm":
            product_and_sum(self.writer, layer, plan.weights, plan.per_channel, grid)
            return
        if plan.onnxruntime and node.op_type == "Conv":
            round_bias(self.writer, layer, grids, grid)
        self.read(node, 0)
        node.replace_input_with(1, self.writer.weight(layer.weight, grids, node))
