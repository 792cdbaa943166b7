"""Writes `QuantizeLinear` and `DequantizeLinear` into a graph, once for each value and grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import inherit
from optimizer.ir.query import constant
from passes.quantization.grids import Grid, Kind, quantize_channels

__all__ = ["WeightGrids", "Writer", "drop_orphans", "unused_constants"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class WeightGrids:
    """The grids of a weight.

    Attributes:
        kind: Of the codes; symmetric.
        axis: Which axis of the codes the channels are.
        scales: `[channels]`, or `[]` for all of it.
        turned: Whether the codes are those of the transposed weight.
    """

    kind: Kind
    axis: int
    scales: Array
    turned: bool = False


class Writer:
    """Adds nodes and constants to a graph.

    Args:
        editor: Of the model.
        scope: The graph.
    """

    def __init__(self, editor: Editor, scope: Scope) -> None:
        self.editor = editor
        self.scope = scope
        self._rounded: dict[tuple[ir.Value, Grid], ir.Value] = {}
        self._codes: dict[tuple[ir.Value, int, bool, bytes], tuple[ir.Value, ir.Value, ir.Value | None]] = {}
        self._weights: dict[tuple[ir.Value, ir.Value, ir.Value | None], ir.Value] = {}

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        before: ir.Node,
        attributes: Mapping[str, Any] | None = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        like: ir.Value | None = None,
        outputs: int = 1,
    ) -> ir.Node:
        """A new node in front of another, whose origins it takes over.

        Args:
            op_type: Of the standard operators.
            inputs: What it reads.
            name: For its first output, made unique.
            before: The node that it stands before.
            attributes: Of the node.
            dtype: Of its first output.
            like: What has the shape of its first output.
            outputs: How many it has.
        """
        made = ir.node(op_type, inputs, dict(attributes or {}), num_outputs=outputs)
        for index, value in enumerate(made.outputs):
            value.name = self.editor.fresh_name(name if not index else f"{name}_{index}")
        made.outputs[0].type = ir.TensorType(dtype)
        if like is not None and like.shape is not None:
            made.outputs[0].shape = like.shape.copy()
        inherit(made, [before])
        self.scope.graph.insert_before(before, made)
        self.editor.modified = True
        return made

    def constant(self, name: str, content: Array, before: ir.Node) -> ir.Value:
        """A new constant."""
        return self.editor.constant(self.scope, before, name, np.asarray(content))

    def rounded(self, value: ir.Value, grid: Grid, before: ir.Node) -> ir.Value:
        """The value on a grid: behind a `QuantizeLinear` and a `DequantizeLinear`.

        Args:
            value: Float32.
            grid: For all of it.
            before: A node that reads it; of all that are given for a value, the first.
        """
        key = value, grid
        if key not in self._rounded:
            dtype = np.dtype(grid.kind.dtype)
            scale = self.constant(f"{value.name}_scale", np.array(grid.scale, np.float32), before)
            zero = self.constant(f"{value.name}_zero_point", np.array(grid.zero_point, dtype), before)
            codes = self.node(
                "QuantizeLinear",
                [value, scale, zero],
                f"{value.name}_quantized",
                before,
                dtype=ir.DataType.from_numpy(dtype),
                like=value,
            ).outputs[0]
            name = f"{value.name}_dequantized"
            self._rounded[key] = self.node("DequantizeLinear", [codes, scale, zero], name, before, like=value).outputs[
                0
            ]
        return self._rounded[key]

    def weight(self, value: ir.Value, grids: WeightGrids, before: ir.Node) -> ir.Value:
        """A weight behind a `DequantizeLinear`; the same one for every layer that asks for the same.

        Args:
            value: The weight.
            grids: For its channels.
            before: A node that reads it; of all that are given for a weight, the first.
        """
        parts = self.codes(value, grids, before)
        if parts not in self._weights:
            attributes = {"axis": grids.axis} if grids.scales.ndim else {}
            name, like = f"{value.name}_dequantized", parts[0]
            inputs = [part for part in parts if part is not None]
            self._weights[parts] = self.node("DequantizeLinear", inputs, name, before, attributes, like=like).outputs[0]
        return self._weights[parts]

    def codes(self, value: ir.Value, grids: WeightGrids, before: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None]:
        """The codes of a weight, their scales, and their zero points where those are not 0."""
        key = value, grids.axis, grids.turned, grids.scales.tobytes()
        if key not in self._codes:
            tensor = constant(value)
            assert tensor is not None, "the weight of a layer is constant"
            array = tensor.numpy().T if grids.turned else tensor.numpy()
            along = grids.axis if grids.scales.ndim else None
            codes = np.ascontiguousarray(quantize_channels(array, grids.scales, along, grids.kind))
            zero = None
            if grids.kind.middle:
                zeros = np.full(grids.scales.shape, grids.kind.middle, grids.kind.dtype)
                zero = self.constant(f"{value.name}_zero_point", zeros, before)
            self._codes[key] = (
                self.constant(f"{value.name}_quantized", codes, before),
                self.constant(f"{value.name}_scale", grids.scales, before),
                zero,
            )
        return self._codes[key]


def unused_constants(scope: Scope) -> set[str]:
    """Names of the initializers that nothing uses before a pass."""
    return {name for name, value in scope.graph.initializers.items() if _is_unused(value)}


def drop_orphans(scope: Scope, unused: set[str]) -> None:
    """Take out the initializers that lost their last user in a pass, small ones too.

    Args:
        scope: The graph.
        unused: What `unused_constants` gave before the pass; that stays.
    """
    for name, value in list(scope.graph.initializers.items()):
        if name not in unused and _is_unused(value):
            del scope.graph.initializers[name]


def _is_unused(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_input() and not value.is_graph_output()
