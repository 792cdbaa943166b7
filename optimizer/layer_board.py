"""A model in which each layer stands in several forms, with a switch for each: any mix of them is a run away.

The float model is loaded once. Where a layer has other forms, an `If` computes the one that is switched on, and no
other. So the effect of one layer in one form, or of all layers in the forms that were chosen, costs one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.ir.provenance import label, origins
from optimizer.ir.query import constant
from optimizer.layer_slices import Copier, LayerSlice, find_slices
from optimizer.ort_session import OrtSession
from optimizer.target import detect_cpu

__all__ = ["FLOAT", "LayerBoard", "Unit", "find_units", "names_of"]

FLOAT = "float32"
"""The form in which a layer was."""


@dataclass(frozen=True)
class Unit:
    """The layers that read one weight: they take the same form.

    Attributes:
        weight: The name of the weight.
        nodes: The layers, in the order of the graph.
        elements: How many the weight has.
        sizes: Bytes of the constants that they read, by form.
        slices: The layers by form, without the form that they were in.
    """

    weight: str
    nodes: tuple[ir.Node, ...]
    elements: int
    sizes: Mapping[str, int]
    slices: Mapping[str, tuple[LayerSlice, ...]] = field(repr=False)

    @property
    def name(self) -> str:
        """That of the first layer."""
        return label(self.nodes[0])

    @property
    def names(self) -> frozenset[str]:
        """All that it can be called by."""
        return frozenset().union(*map(names_of, self.nodes))


def names_of(node: ir.Node) -> frozenset[str]:
    """What a layer can be called by: its label, the nodes it stands for, what it computes, its constants."""
    constants = (value.name or "" for value in node.inputs if value is not None and constant(value) is not None)
    return frozenset((label(node), node.outputs[0].name or "", *origins(node), *constants))


def find_units(before: ir.Model, forms: Mapping[str, ir.Model]) -> tuple[list[Unit], dict[str, str]]:
    """The layers that can take another form.

    Args:
        before: The float model.
        forms: The same with all layers in a form that can take it, by the form's name.

    Returns:
        The layers in the order of the graph, and why others cannot take any, by their names.
    """
    slices = {form: {s.before: s for s in find_slices(before, after)} for form, after in forms.items()}
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in before.graph:
        if any(node in found for found in slices.values()):
            readers.setdefault(_weight(node), []).append(node)
    units, alone = [], {}
    for weight, nodes in readers.items():
        other = next((user for user, _ in weight.uses() if user not in nodes), None)
        if other is not None:
            alone.update({label(n): f"its weight {weight.name!r} is also read by {label(other)!r}" for n in nodes})
            continue
        able = {
            form: tuple(found[n] for n in nodes) for form, found in slices.items() if all(n in found for n in nodes)
        }
        if not able:
            alone.update({label(n): f"no form is possible for all that read {weight.name!r}" for n in nodes})
            continue
        sizes = {FLOAT: _bytes(nodes), **{f: _bytes([n for s in of for n in s.after]) for f, of in able.items()}}
        tensor = constant(weight)
        assert tensor is not None, "a weight is constant"
        units.append(Unit(weight.name or "", tuple(nodes), int(np.prod(tensor.shape.numpy())), sizes, able))
    return units, alone


def _weight(node: ir.Node) -> ir.Value:
    """The largest constant that a layer reads."""
    held = [(value, tensor) for value in node.inputs if value is not None and (tensor := constant(value)) is not None]
    return max(held, key=lambda pair: pair[1].nbytes)[0]


def _bytes(nodes: Sequence[ir.Node]) -> int:
    tensors = {id(t): t for node in nodes for value in node.inputs if (t := constant(value)) is not None}
    return sum(tensor.nbytes for tensor in tensors.values())


class LayerBoard:
    """Runs a model with its layers in any mix of forms.

    Args:
        before: The float model; not changed.
        units: Its layers.

    Raises:
        UnsupportedError: ONNX Runtime cannot load it.
    """

    def __init__(self, before: ir.Model, units: Sequence[Unit]) -> None:
        self._switches = [(index, form) for index, unit in enumerate(units) for form in unit.slices]
        board = _with_switches(before, units)
        self._session = OrtSession.from_model(board, num_threads=detect_cpu().cores, as_written=True)
        self._floats = [FLOAT] * len(units)

    def run(self, inputs: Sequence[Any], forms: Sequence[str] | None = None) -> list[Any]:
        """The outputs of the model.

        Args:
            inputs: In the order of the graph.
            forms: Of each unit; all in float when not given.

        Raises:
            ExecutionError: It does not run on these inputs.
        """
        chosen = self._floats if forms is None else forms
        return self._session.run([*inputs, *(np.array(chosen[index] == form) for index, form in self._switches)])


def _with_switches(before: ir.Model, units: Sequence[Unit]) -> ir.Model:
    """The float model with further inputs: a truth value for each unit and form."""
    board = before.clone()
    graph = board.graph
    known: dict[str | None, ir.Value] = {value.name: value for value in graph.inputs}
    known.update({value.name: value for node in graph for value in node.outputs if value.name})
    switches: dict[tuple[str, str], ir.Value] = {}
    for unit in units:
        for form in unit.slices:
            name = f"switch:{len(switches)}"
            switch = ir.Value(name=name, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
            switches[unit.weight, form] = switch
            graph.inputs.append(switch)
    constants: dict[ir.Value, ir.Value] = {}
    order = {node: number for number, node in enumerate(before.graph)}
    layers = [(order[node], position, unit) for unit in units for position, node in enumerate(unit.nodes)]
    for number, position, unit in sorted(layers, key=lambda entry: entry[0]):
        node = known[unit.nodes[position].outputs[0].name].producer()
        assert node is not None, "a layer computes what it gives"
        branches = [(switches[unit.weight, form], of[position]) for form, of in unit.slices.items()]
        known[node.outputs[0].name] = _switch(graph, node, branches, known, f"{number}:", constants)
    return board


def _switch(
    graph: ir.Graph,
    node: ir.Node,
    branches: Sequence[tuple[ir.Value, LayerSlice]],
    known: Mapping[str | None, ir.Value],
    prefix: str,
    constants: dict[ir.Value, ir.Value],
) -> ir.Value:
    """Put a chain of `If` in the place of a layer: each asks for one form, the last computes the layer as it was."""
    y = node.outputs[0]
    inner = ir.Node(
        node.domain, node.op_type, list(node.inputs), node.attributes.copy(), num_outputs=1, version=node.version
    )
    chain = inner
    for place, (switch, layer) in enumerate(branches):
        copier = Copier(graph, known, f"{prefix}{place}:{{}}".format, constants)
        then = _branch(copier.copy(layer.after), f"{prefix}{place}:then")
        otherwise = _branch([chain], f"{prefix}{place}:else")
        chain = ir.node("If", [switch], {"then_branch": then, "else_branch": otherwise})
    result = chain.outputs[0]
    result.name, result.type, result.shape = f"{prefix}{y.name}", y.type, y.shape
    graph.insert_before(node, chain)
    y.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return result


def _branch(nodes: Sequence[ir.Node], name: str) -> ir.Graph:
    """A graph of nodes, of which the last gives its output."""
    result = nodes[-1].outputs[0]
    result.name = result.name or f"{name}:y"
    result.type = result.type or ir.TensorType(ir.DataType.FLOAT)
    return ir.Graph([], [result], nodes=nodes, name=name)
