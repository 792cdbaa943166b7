"""Replace a short `Loop` by its body, as many times as it runs.

It is done when

1. the number of trips is a constant up to `max_trips`;
2. the loop cannot end before: its condition is left out or constantly true, and the body passes it on or gives a
   constant that is true;
3. the copies have at most `max_nodes` nodes;
4. it runs at least once, or has no scan outputs: nothing tells the shape of an empty one.

Names of sizes inside are forgotten: what has one name there may be another size in each trip.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import array, input_at, is_op, known_ints
from optimizer.ir.walk import nested_graphs, subgraphs
from optimizer.pass_manager import Pass

__all__ = ["UnrollLoops"]


@dataclasses.dataclass(frozen=True)
class UnrollLoops(Pass):
    """Unrolls short loops.

    Attributes:
        max_trips: How often the body runs at most.
        max_nodes: How many nodes the copies of the body have at most, all together.
    """

    max_trips: int = 8
    max_nodes: int = 256

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Unroll inner loops first."""
        return rewrite_nodes(model, functools.partial(_visit, self), ("Loop",))


def _visit(limits: UnrollLoops, editor: Editor, scope: Scope, node: ir.Node) -> None:
    trips = _trips(node) if is_op(node, "Loop") else None
    if trips is None or trips > limits.max_trips:
        return
    body = node.attributes["body"].as_graph()
    if trips * sum(1 for graph in nested_graphs(body) for _ in graph) > limits.max_nodes:
        return
    carried = len(node.inputs) - 2
    if len(node.outputs) > carried and trips == 0:
        return
    for inner in _unroll(editor, scope, node, body, trips):
        # Its condition or number of trips may be constant only now.
        _visit(limits, editor, scope, inner)


def _trips(node: ir.Node) -> int | None:
    """How often the body runs, when that is certain."""
    count, condition = known_ints(input_at(node, 0)), input_at(node, 1)
    if count is None or len(count) != 1:
        return None
    if condition is not None:
        start = array(condition)
        if start is None or start.size != 1:
            return None
        if not start.all():
            return 0
    return max(0, count[0]) if _always_goes_on(node.attributes["body"].as_graph()) else None


def _always_goes_on(body: ir.Graph) -> bool:
    value: ir.Value | None = body.outputs[0]
    while value is not None and value is not body.inputs[1]:
        constant = array(value)
        if constant is not None:
            return bool(constant.all())
        node = value.producer()
        value = node.inputs[0] if node is not None and node.graph is body and is_op(node, "Identity") else None
    return value is not None


def _unroll(editor: Editor, scope: Scope, node: ir.Node, body: ir.Graph, trips: int) -> list[ir.Node]:
    """Replace the loop; gives the nodes that came in."""
    state = list(node.inputs[2:])
    scans: list[list[ir.Value]] = [[] for _ in node.outputs[len(state) :]]
    nodes: list[ir.Node] = []
    for trip in range(trips):
        results = _copy(editor, scope, node, body, trip, state, nodes)
        state = list(results[: len(state)])
        for scan, value in zip(scans, results[len(state) :], strict=True):
            scan.append(value)
    for output, last in zip(node.outputs, state, strict=False):
        if last is not None and (output.uses() or output.is_graph_output()):
            editor.replace_or_copy(node, output, last)
    for output, values in zip(node.outputs[len(state) :], scans, strict=True):
        if output.uses() or output.is_graph_output():
            editor.replace_or_copy(node, output, _stacked(editor, scope, node, output, values))
    editor.remove(node)
    return nodes


def _copy(
    editor: Editor,
    scope: Scope,
    node: ir.Node,
    body: ir.Graph,
    trip: int,
    state: Sequence[ir.Value | None],
    made: list[ir.Node],
) -> list[ir.Value]:
    """Put one more copy of the body before the loop, and its nodes into `made`; gives its outputs but the condition."""
    copy = body.clone(allow_outer_scope_values=True)
    given: dict[ir.Value, ir.Value | None] = dict(zip(copy.inputs[2:], state, strict=True))
    for formal, content in ((copy.inputs[0], np.array(trip, np.int64)), (copy.inputs[1], np.array(True))):
        if formal.uses() or formal in copy.outputs[1:]:
            given[formal] = editor.constant(scope, node, formal.name, content)
    for value in list(copy.initializers.values()):
        assert value.const_value is not None and value.name is not None, "an initializer has both"
        given[value] = editor.constant(scope, node, value.name, value.const_value)
        del copy.initializers[value.name]
    results = [given.get(value, value) for value in copy.outputs[1:]]
    copy.outputs.clear()
    for formal, actual in given.items():
        for user, index in formal.uses():
            user.replace_input_with(index, actual)
    nodes = list(copy)
    copy.remove(nodes)
    for inner in nodes:
        _rename(editor, node, inner, trip)
    assert node.graph is not None, "the loop is in a graph"
    node.graph.insert_before(node, nodes)
    made += nodes
    return [value for value in results if value is not None]


def _rename(editor: Editor, loop: ir.Node, inner: ir.Node, trip: int) -> None:
    if inner.name:
        inner.name = f"{inner.name}_{trip}"
    inherit(inner, [loop])
    _rename_values(editor, inner.outputs)
    for graph in (nested for subgraph in subgraphs(inner) for nested in nested_graphs(subgraph)):
        _rename_values(editor, [*graph.inputs, *graph.initializers.values()])
        for deeper in graph:
            _rename_values(editor, deeper.outputs)


def _rename_values(editor: Editor, values: Sequence[ir.Value]) -> None:
    for value in values:
        if value.name:
            value.name = editor.fresh_name(value.name)
        if value.const_value is None and value.shape is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else None for size in value.shape])


def _stacked(editor: Editor, scope: Scope, node: ir.Node, output: ir.Value, values: Sequence[ir.Value]) -> ir.Value:
    axis = editor.constant(scope, node, f"{output.name}_axis", np.array([0], np.int64))
    rows = []
    for value in values:
        row = ir.node("Unsqueeze", [value, axis]) if scope.opset >= 13 else _old_unsqueeze(value)
        row.outputs[0].name = editor.fresh_name(f"{output.name}_row")
        rows.append(row)
    stack = ir.node("Concat", [row.outputs[0] for row in rows], {"axis": 0})
    stack.outputs[0].name = editor.fresh_name(output.name)
    for new in (*rows, stack):
        inherit(new, [node])
    assert node.graph is not None, "the loop is in a graph"
    node.graph.insert_before(node, [*rows, stack])
    return stack.outputs[0]


def _old_unsqueeze(value: ir.Value) -> ir.Node:
    return ir.node("Unsqueeze", [value], {"axes": [0]})
