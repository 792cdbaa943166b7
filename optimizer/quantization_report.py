"""What the rounding of each layer costs: measured, one layer at a time.

All layers are measured with one model: the float one, in which each layer stands twice, as it was and as it became,
with a switch between them. With all switches off, what each quantized layer gives on exact inputs is held against the
float one; with one switch on, the outputs of the model say what that layer does to them.
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
from optimizer.ir.costs import model_costs
from optimizer.ir.provenance import label, origins
from optimizer.ir.weights import weight_bytes
from optimizer.layer_errors import LayerError
from optimizer.layer_slices import Copier, LayerSlice, find_slices
from optimizer.ort_session import OrtSession
from optimizer.pass_manager import Pass
from optimizer.quantized_comparison import loss_of
from optimizer.target import detect_cpu

__all__ = ["LayerErrorRecorder", "measure_layers"]

_MOST_SETS = 4
"""Sets of inputs on which what the layers give is compared."""

_MOST_FLOPS = 2e12
"""For the runs with one switch on: some ten seconds. Those layers whose own error is largest are measured."""

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
    session = OrtSession.from_model(_switchboard(before, layers), num_threads=detect_cpu().cores)
    outputs = len(before.graph.outputs)
    off = [np.array(False)] * len(layers)
    exact: list[Any] = []
    sums = np.zeros((len(layers), 2))
    for inputs in given:
        results = session.run([*inputs, *off])
        exact = exact or results[:outputs]
        sums += np.array(results[outputs:], np.float64).reshape(-1, 2)
    rows = [_row(layer, *pair) for layer, pair in zip(layers, sums, strict=True)]
    shapes = {v.name or "": x.shape for v, x in zip(before.graph.inputs, given[0], strict=True) if hasattr(x, "shape")}
    runs = int(_MOST_FLOPS / max(1, 2 * model_costs(before, shapes).flops))
    for index in sorted(range(len(rows)), key=lambda i: -rows[i].error)[:runs]:
        switches = [np.array(i == index) for i in range(len(rows))]
        results = session.run([*given[0], *switches])[:outputs]
        rows[index] = replace(rows[index], effect=loss_of(results, exact))
    return rows


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


def _switchboard(before: ir.Model, layers: Sequence[LayerSlice]) -> ir.Model:
    """The float model with each layer in both forms.

    Its inputs are followed by a switch for each layer, its outputs by the sums of squares of each layer's error and
    result.
    """
    board = before.clone()
    graph = board.graph
    known = {value.name: value for value in graph.inputs}
    known.update({value.name: value for node in graph for value in node.outputs if value.name})
    sums: list[ir.Value] = []
    for number, layer in enumerate(layers):
        y = known[layer.value]
        producer = y.producer()
        assert producer is not None, "a layer computes what it gives"
        users = list(y.uses())
        outputs = [index for index, value in enumerate(graph.outputs) if value is y]
        nodes = Copier(graph, known, f"layer{number}:{{}}".format).copy(layer.after)
        rounded = nodes[-1].outputs[0]
        switch = ir.Value(name=f"layer{number}:switch", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        graph.inputs.append(switch)
        chosen = ir.node("Where", [switch, rounded, y])
        error = ir.node("Sub", [rounded, y])
        noise = ir.node("ReduceSumSquare", [error.outputs[0]], {"keepdims": 0})
        signal = ir.node("ReduceSumSquare", [y], {"keepdims": 0})
        more = {"chosen": chosen, "error": error, "noise": noise, "signal": signal}
        for name, node in more.items():
            node.outputs[0].name = f"layer{number}:{name}"
        for user, index in users:
            user.replace_input_with(index, chosen.outputs[0])
        chosen.outputs[0].type, chosen.outputs[0].shape = y.type, y.shape
        for index in outputs:
            graph.outputs[index] = chosen.outputs[0]
        known[layer.value] = chosen.outputs[0]
        graph.insert_after(producer, [*nodes, *more.values()])
        for node in (noise, signal):
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            sums.append(node.outputs[0])
    graph.outputs.extend(sums)
    return board
