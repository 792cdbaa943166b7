"""Layers on grids that calibration data gives; see `passes.quantize_int8`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.calibration import Samples
from optimizer.ir.edit import Editor, Scope
from passes.quantization.calibrators import calibrate
from passes.quantization.grids import Grid, Kind
from passes.quantization.histogram import Histogram
from passes.quantization.layers import Layer
from passes.quantization.onnxruntime_forms import product_and_sum, round_bias, widened_for_bias
from passes.quantization.ranges import observe_ranges
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
        onnxruntime: Whether the forms are to be those that ONNX Runtime computes in integers.
    """

    weights: Kind
    activations: Kind
    per_channel: bool
    method: str
    percentile: float
    onnxruntime: bool = False

    def grid(self, seen: Histogram) -> Grid:
        """For an activation."""
        return self.activations.over(*calibrate(seen, self.activations, self.method, self.percentile))


def quantize_static(editor: Editor, scope: Scope, layers: Sequence[Layer], plan: StaticPlan, samples: Samples) -> None:
    """Put activations and weights of layers on grids.

    Args:
        editor: Of the model.
        scope: The main graph.
        layers: In topological order.
        plan: What grids are wanted.
        samples: Calibration data.
    """
    names = list(dict.fromkeys(layer.x.name or "" for layer in layers))
    seen = observe_ranges(editor.model, names, samples)
    writer = Writer(editor, scope)
    for layer in layers:
        # Not `layer.x`: a layer before this one may have replaced it.
        x = layer.node.inputs[0]
        assert x is not None, "a layer has an activation"
        grid = plan.grid(seen[x.name or ""])
        if plan.onnxruntime and layer.node.op_type == "Gemm":
            product_and_sum(writer, layer, plan.weights, plan.per_channel, grid)
            continue
        grids = layer.grids(plan.weights, plan.per_channel)
        if plan.onnxruntime and layer.node.op_type == "Conv":
            grids = widened_for_bias(layer, grids, grid)
            round_bias(writer, layer, grids, grid)
        layer.node.replace_input_with(0, writer.rounded(x, grid, layer.node))
        layer.node.replace_input_with(1, writer.weight(layer.weight, grids, layer.node))
        editor.release(layer.weight)
