"""What the rounding of each layer costs: measured, one layer at a time.

The float model is run with each layer standing twice in it, as it was and as it became (`optimizer.layer_boards`):
what a layer gives on exact inputs is held against the float one. Then for each layer, as far as there is time, what
stands behind it is run with that layer alone quantized: the outputs of the model say what it does to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.errors import ExecutionError, UnsupportedError
from optimizer.executable import Array
from optimizer.ir.extract import with_outputs
from optimizer.ir.provenance import label, origins
from optimizer.ir.weights import weight_bytes
from optimizer.layer_boards import GroupPart, grouped, paired
from optimizer.layer_errors import LayerError
from optimizer.layer_slices import LayerSlice, find_slices
from optimizer.ort_session import OrtSession
from optimizer.pass_manager import Pass
from optimizer.quantized_comparison import loss_of
from optimizer.target import detect_cpu

__all__ = ["LayerErrorRecorder", "measure_layers"]

_MOST_SETS = 4
"""Sets of inputs on which what the layers give is compared."""

_MOST_FLOPS = 1e12
"""For the runs with one layer quantized: some five seconds. Those layers whose own error is largest are measured."""

_MOST_BYTES = 2**30
"""Of weights: the model is held twice."""


def measure_layers(before: ir.Model, after: ir.Model, sets: Iterable[Sequence[Any]]) -> list[LayerError]:
    """Measure what each layer that was quantized costs.

    Args:
        before: The float model; not changed.
        after: The same with quantized layers; not changed. Values that both have are the same but for rounding.
        sets: Inputs; a few of the first are used.

    Returns:
        One row for each quantized layer, in the order of the graph.

    Raises:
        UnsupportedError: ONNX Runtime cannot load the model, or it is too large to be held twice.
        ExecutionError: It does not run on these inputs.
    """
    layers = find_slices(before, after)
    given = [list(inputs) for inputs in islice(sets, _MOST_SETS)]
    if not layers or not given:
        return []
    if weight_bytes(before) > _MOST_BYTES:
        raise UnsupportedError(f"its weights are over {_MOST_BYTES >> 20} MiB")
    groups = grouped(before, layers)
    crossing = dict.fromkeys(name for group in groups for name in group.crossing)
    sums, seen = _on_exact_inputs(before, layers, list(crossing), given)
    rows = [_row(layer, *pair) for layer, pair in zip(layers, sums, strict=True)]
    exact = [seen[value.name] for value in before.graph.outputs]
    parts = [part for group in groups if (part := group.part(before, seen)) is not None]
    for part, numbers in _affordable(parts, rows):
        for number, results in part.runs(numbers):
            rows[number] = replace(rows[number], effect=loss_of(results, [exact[index] for index in part.group.later]))
    return rows


def _on_exact_inputs(
    before: ir.Model, layers: Sequence[LayerSlice], names: Sequence[str], sets: Sequence[list[Any]]
) -> tuple[Array, dict[str | None, Any]]:
    """The squares of each layer's error and result, added up, `[layers, 2]`; and some values on the first set."""
    board = with_outputs(paired(before, layers), names)
    session = OrtSession.from_model(board, num_threads=detect_cpu().cores)
    first, behind = len(before.graph.outputs), len(before.graph.outputs) + 2 * len(layers)
    seen: dict[str | None, Any] = {}
    sums = np.zeros((len(layers), 2))
    for inputs in sets:
        results = session.run(inputs)
        seen = seen or dict(zip([*session.input_names, *session.output_names], [*inputs, *results], strict=True))
        sums += np.array(results[first:behind], np.float64).reshape(-1, 2)
    return sums, seen


def _affordable(parts: Sequence[GroupPart], rows: Sequence[LayerError]) -> list[tuple[GroupPart, list[int]]]:
    """The parts, and which of their layers there is time for: those with the largest errors of their own."""
    part_of = {number: part for part in parts for number in part.group.layers}
    chosen: set[int] = set()
    left = _MOST_FLOPS
    for number in sorted(part_of, key=lambda i: -rows[i].error):
        left -= part_of[number].flops
        if left < 0:
            break
        chosen.add(number)
    found = [(part, [number for number in part.group.layers if number in chosen]) for part in parts]
    return [(part, numbers) for part, numbers in found if numbers]


class LayerErrorRecorder:
    """An instrument that measures the layers of each pass that quantizes.

    Attributes:
        rows: What was measured.
        notes: Why something was not.

    Args:
        sets: Inputs for passes without calibration data of their own.
    """

    def __init__(self, sets: Sequence[Sequence[Any]]) -> None:
        self.rows: list[LayerError] = []
        self.notes: list[str] = []
        self._sets = sets
        self._before: ir.Model | None = None

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Keep the float model, whose weights are not copied."""
        self._before = model.clone() if hasattr(pass_, "samples") else None

    def after_pass(self, pass_: Pass, model: ir.Model, modified: bool, seconds: float) -> None:
        """Measure."""
        del seconds
        before, self._before = self._before, None
        if before is None or not modified:
            return
        try:
            self.rows += measure_layers(before, model, getattr(pass_, "samples", None) or self._sets)
        except (ExecutionError, UnsupportedError) as error:
            self.notes.append(f"what each layer of {pass_.name} costs was not measured: {error}")


def _row(layer: LayerSlice, noise: float, signal: float) -> LayerError:
    error = math.sqrt(noise / signal) if signal > 0 else math.sqrt(noise)
    node = layer.before
    return LayerError(label(node), node.op_type, layer.weight, error, origins=origins(node))
