"""Measure where a run's work and memory go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import onnx_ir as ir

from optimizer.ir.costs import InputShapes, Sizes, alive_bytes, node_flops
from optimizer.ir.provenance import label
from optimizer.ir.specs import dtype_name
from optimizer.ir.walk import nested_graphs, subgraphs
from optimizer.usage import OperatorUsage, Usage

__all__ = ["measure_usage"]

_MOST_POINTS = 400
_READS_SOME_ROWS = ("Gather", "GatherElements", "GatherND", "Slice")


def measure_usage(model: ir.Model, cache_bytes: int, input_shapes: InputShapes | None = None) -> Usage:
    """What a run of the model needs.

    Args:
        model: Not changed.
        cache_bytes: The last cache of the machine that it will run on.
        input_shapes: Shapes of inputs by name; where none is given, what the model declares.
    """
    sizes = Sizes(model, input_shapes)
    figures: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for graph in nested_graphs(model.graph):
        for node in graph:
            if node.op_type != "Constant":
                row = figures[f"{node.domain}::{node.op_type}".removeprefix("::"), _dtype(node)]
                for i, figure in enumerate((1, node_flops(node, sizes), *_bytes(node, sizes))):
                    row[i] += figure
    alive = alive_bytes(model.graph, sizes)
    peak = label(model.graph[alive.index(max(alive))]) if alive else ""
    rows = tuple(OperatorUsage(*key, *row) for key, row in figures.items())
    return Usage(rows, _thinned(alive), peak, cache_bytes)


def _dtype(node: ir.Node) -> str:
    """What it computes in: the type of the first floating-point value, else of the first output."""
    names = [dtype_name(value.type) for value in (*node.outputs, *node.inputs) if value is not None]
    return next((name for name in names if "float" in name), names[0] if names else "")


def _bytes(node: ir.Node, sizes: Sizes) -> tuple[int, int]:
    """Bytes of weights, and of activations read and written."""
    if any(True for _ in subgraphs(node)):
        return 0, 0
    written = sum(sizes.bytes(value) for value in node.outputs)
    weights = moved = 0
    for value in dict.fromkeys(node.inputs):
        if value is None:
            continue
        size = sizes.bytes(value)
        if node.op_type in _READS_SOME_ROWS and value is node.inputs[0]:
            size = min(size, written)
        if value.is_initializer() or value.const_value is not None:
            weights += size
        else:
            moved += size
    return weights, moved + written


def _thinned(points: list[int]) -> tuple[int, ...]:
    """The largest of each run of points, so that no peak is lost."""
    step = -(-len(points) // _MOST_POINTS) or 1
    return tuple(map(max, _runs(points, step)))


def _runs(points: list[int], step: int) -> Iterable[list[int]]:
    return (points[start : start + step] for start in range(0, len(points), step))
