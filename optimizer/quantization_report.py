"""What the rounding of each layer costs: measured, one layer at a time.

All layers are measured with one model: the float one, in which each layer stands twice, as it was and as it became,
with a switch between them. With all switches off, what each quantized layer gives on exact inputs is held against the
float one; with one switch on, the outputs of the model say what that layer does to them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.errors import ExecutionError, UnsupportedError
from optimizer.ir.costs import model_costs
from optimizer.ir.provenance import label, origins
from optimizer.ir.query import constant
from optimizer.ir.weights import weight_bytes
from optimizer.layer_errors import LayerError
from optimizer.ort_session import OrtSession
from optimizer.pass_manager import Pass
from optimizer.quantized_comparison import loss_of
from optimizer.target import detect_cpu

__all__ = ["LayerErrorRecorder", "measure_layers"]

_LAYERS = ("Conv", "ConvTranspose", "Gather", "Gemm", "MatMul")

_MOST_SETS = 4
"""Sets of inputs on which what the layers give is compared."""

_MOST_FLOPS = 2e12
"""For the runs with one switch on: some ten seconds. Those layers whose own error is largest are measured."""

_MOST_BYTES = 2**30
"""Of weights: the model is held twice."""


@dataclass(frozen=True)
class _Layer:
    """A layer in both forms.

    Attributes:
        value: The name of what it gives.
        before: The float node.
        after: The nodes that do its work, in order; the last gives `value`.
    """

    value: str
    before: ir.Node
    after: list[ir.Node]


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
    layers = _layers(before, after)
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


def _row(layer: _Layer, noise: float, signal: float) -> LayerError:
    error = math.sqrt(noise / signal) if signal > 0 else math.sqrt(noise)
    node = layer.before
    return LayerError(label(node), node.op_type, _weight_type(layer.after), error, origins=origins(node))


def _layers(before: ir.Model, after: ir.Model) -> list[_Layer]:
    """The layers that another set of nodes computes now."""
    made = {value.name: node for node in before.graph for value in node.outputs if value.name}
    common = {*made, *(value.name for value in before.graph.inputs)}
    found = []
    for node in after.graph:
        name = node.outputs[0].name if node.outputs else None
        old = None if name is None else made.get(name)
        if name is None or old is None or old.op_type not in _LAYERS or old.outputs[0].name != name:
            continue
        nodes = _slice(node, common)
        if len(nodes) > 1 and _weight_type(nodes):
            found.append(_Layer(name, old, nodes))
    return found


def _weight_type(nodes: Sequence[ir.Node]) -> str:
    """The narrowest type of 8 bits or fewer among the constants of nodes, `""` if there is none."""
    tensors = [constant(value) for node in nodes for value in node.inputs]
    narrow = {t.dtype for t in tensors if t is not None and t.dtype.is_integer() and t.dtype.bitwidth <= 8}
    found = min(narrow, key=lambda dtype: (dtype.bitwidth, dtype.name), default=None)
    return "" if found is None else found.name.lower()


def _slice(last: ir.Node, common: set[str | None]) -> list[ir.Node]:
    """The nodes that compute what a node gives from values that the float model has, too."""
    nodes = {last: None}
    pending = [last]
    while pending:
        for value in pending.pop().inputs:
            producer = None if value is None or value.name in common else value.producer()
            if producer is not None and producer not in nodes:
                nodes[producer] = None
                pending.append(producer)
    assert last.graph is not None, "the node is in a graph"
    return [node for node in last.graph if node in nodes] if len(nodes) > 1 else [last]


def _switchboard(before: ir.Model, layers: Sequence[_Layer]) -> ir.Model:
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
        nodes, rounded = _copy(layer, f"layer{number}:", known, graph)
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


def _copy(
    layer: _Layer, prefix: str, known: dict[str | None, ir.Value], graph: ir.Graph
) -> tuple[list[ir.Node], ir.Value]:
    """The nodes of a layer for another graph, and what they give."""
    made: dict[ir.Value, ir.Value] = {}

    def here(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in made:
            return None if value is None else made[value]
        if value.is_initializer():
            name = f"{prefix}{value.name}"
            made[value] = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
            graph.register_initializer(made[value])
            return made[value]
        return known[value.name]

    nodes = []
    for node in layer.after:
        copy = ir.Node(
            node.domain, node.op_type, [here(value) for value in node.inputs], node.attributes.copy(),
            num_outputs=len(node.outputs), version=node.version,
        )  # fmt: skip
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = f"{prefix}{old.name}" if old.name else ""
            made[old] = new
        nodes.append(copy)
    return nodes, nodes[-1].outputs[0]
