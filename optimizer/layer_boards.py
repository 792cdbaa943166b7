"""Float models in which quantized layers stand twice, as they were and as they became.

What a quantized layer gives on exact inputs is held against the float one in `paired`: all layers in one run. What one
layer alone does to the outputs is a run in which a switch chooses its quantized form (`Group`). What stands in front of
it gives what it gave before; so layers are taken in groups of neighbours, and only what stands behind the first of a
group is run, from the values that cross the graph there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.calibration_walk import crossing_values
from optimizer.ir.costs import model_costs
from optimizer.ir.extract import part_behind
from optimizer.layer_slices import Copier, LayerSlice
from optimizer.ort_session import OrtSession
from optimizer.target import detect_cpu

__all__ = ["Group", "grouped", "paired"]

_TOGETHER = 12
"""Layers of a group: with fewer, loading the parts takes longer than running what need not be."""

Added = tuple[list[ir.Node], ir.Value | None]
"""The nodes behind both forms of a layer, and what of theirs is read in the place of its value."""


def paired(before: ir.Model, layers: Sequence[LayerSlice]) -> ir.Model:
    """The float model with two more outputs for each layer.

    They are the squares, summed up, of how far its quantized form is off, and of what it gives.
    """
    sums: list[ir.Value] = []

    def compare(number: int, y: ir.Value, rounded: ir.Value) -> Added:
        error = ir.node("Sub", [rounded, y])
        noise = ir.node("ReduceSumSquare", [error.outputs[0]], {"keepdims": 0})
        signal = ir.node("ReduceSumSquare", [y], {"keepdims": 0})
        for name, node in {"error": error, "noise": noise, "signal": signal}.items():
            node.outputs[0].name = f"layer{number}:{name}"
        for node in (noise, signal):
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
            sums.append(node.outputs[0])
        return [error, noise, signal], None

    board = _twice(before, dict(enumerate(layers)), compare)
    board.graph.outputs.extend(sums)
    return board


@dataclass(frozen=True)
class Group:
    """Layers that are neighbours in the order of the graph.

    Attributes:
        layers: By their numbers among all.
        crossing: The names of the values in front of the first that are read behind it.
        later: The positions of those outputs of the model that are computed behind it.
    """

    layers: Mapping[int, LayerSlice]
    crossing: tuple[str, ...]
    later: tuple[int, ...]

    def part(self, before: ir.Model, seen: Mapping[str | None, Any]) -> GroupPart | None:
        """What stands behind the first layer; `None` if no output hangs on it, or a value was not seen that it reads.

        Args:
            before: The float model; not changed.
            seen: Values of it by name, `crossing` and its inputs among them.
        """
        if not self.later:
            return None
        board = _switched(before, self.layers)
        # Not more: what a later group begins with would stand for what this one changes.
        known = [*self.crossing, *(value.name or "" for value in before.graph.inputs)]
        given = {name: seen[name] for name in known} | {_switch(number): np.array(False) for number in self.layers}
        names = [board.graph.outputs[index].name or "" for index in self.later]
        part = part_behind(board, given.keys(), list(dict.fromkeys(names)), given)
        return None if part is None else GroupPart(self, part, names, given)


class GroupPart:
    """A part of a model that begins at a group of layers, with a switch for each of them.

    Attributes:
        group: The layers.
        flops: Of a run.
    """

    def __init__(self, group: Group, model: ir.Model, names: Sequence[str], given: Mapping[str, Any]) -> None:
        self.group = group
        self._model, self._names, self._given = model, names, given
        shapes = {name: x.shape for name, x in given.items() if hasattr(x, "shape")}
        self.flops = model_costs(model, shapes).flops

    def runs(self, numbers: Iterable[int]) -> Iterator[tuple[int, list[Any]]]:
        """Of some of the layers the number, and the outputs of `Group.later` when that layer alone is quantized.

        Raises:
            UnsupportedError: ONNX Runtime cannot load the part.
            ExecutionError: It does not run.
        """
        session = OrtSession.from_model(self._model, num_threads=detect_cpu().cores, spinning=False)
        for number in numbers:
            given = {**self._given, _switch(number): np.array(True)}
            results = session.run([given[name] for name in session.input_names])
            found = dict(zip(session.output_names, results, strict=True))
            yield number, [found[name] for name in self._names]


def grouped(before: ir.Model, layers: Sequence[LayerSlice]) -> list[Group]:
    """The layers in groups of neighbours."""
    place = {node: index for index, node in enumerate(before.graph)}
    order = sorted(range(len(layers)), key=lambda number: place[layers[number].before])
    return [
        _group(before, {number: layers[number] for number in order[first : first + _TOGETHER]}, place)
        for first in range(0, len(order), _TOGETHER)
    ]


def _group(before: ir.Model, layers: Mapping[int, LayerSlice], place: Mapping[ir.Node, int]) -> Group:
    first = next(iter(layers.values())).before
    crossing = [] if place[first] == 0 else crossing_values(before.graph, first)
    if not all(isinstance(value.type, ir.TensorType) and value.name for value in crossing):
        first, crossing = before.graph[0], []  # what cannot be given to a part is computed there
    makers = [value.producer() for value in before.graph.outputs]
    later = [index for index, node in enumerate(makers) if node is not None and place[node] >= place[first]]
    return Group(layers, tuple(value.name or "" for value in crossing), tuple(later))


def _switched(before: ir.Model, layers: Mapping[int, LayerSlice]) -> ir.Model:
    """The float model with a switch for each of these layers, an input that chooses its quantized form."""
    switches: list[ir.Value] = []

    def choose(number: int, y: ir.Value, rounded: ir.Value) -> Added:
        switch = ir.Value(name=_switch(number), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        switches.append(switch)
        node = ir.node("Where", [switch, rounded, y])
        chosen = node.outputs[0]
        chosen.name, chosen.type, chosen.shape = f"layer{number}:chosen", y.type, y.shape
        return [node], chosen

    board = _twice(before, layers, choose)
    board.graph.inputs.extend(switches)
    return board


def _switch(number: int) -> str:
    return f"layer{number}:switch"


def _twice(
    before: ir.Model, layers: Mapping[int, LayerSlice], add: Callable[[int, ir.Value, ir.Value], Added]
) -> ir.Model:
    """A copy of the float model with the nodes of the quantized layers, and what `add` makes of both forms' values."""
    board = before.clone()
    graph = board.graph
    known = {value.name: value for value in graph.inputs}
    known.update({value.name: value for node in graph for value in node.outputs if value.name})
    for number, layer in layers.items():
        y = known[layer.value]
        producer = y.producer()
        assert producer is not None, "a layer computes what it gives"
        users = list(y.uses())
        outputs = [index for index, value in enumerate(graph.outputs) if value is y]
        nodes = Copier(graph, known, f"layer{number}:{{}}".format).copy(layer.after)
        more, chosen = add(number, y, nodes[-1].outputs[0])
        graph.insert_after(producer, [*nodes, *more])
        if chosen is not None:
            for user, index in users:
                user.replace_input_with(index, chosen)
            for index in outputs:
                graph.outputs[index] = chosen
            known[layer.value] = chosen
    return board
