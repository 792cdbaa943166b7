"""The smallest part of a model that still shows a fault."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import onnx_ir as ir

from optimizer.errors import ExecutionError, UnsupportedError
from optimizer.ir.extract import backward_cone, extract, read_values
from optimizer.localize import values_of

__all__ = ["smallest_part"]

Shows = Callable[[ir.Model, list[Any]], bool]
Part = tuple[ir.Model, list[Any]]

_SECONDS = 60.0
"""After so long the smallest part so far is taken."""

_MOST_VALUES = 20


def smallest_part(model: ir.Model, inputs: list[Any], suspects: Collection[str], shows: Shows) -> Part:
    """Find a part of the model, with inputs, that still shows a fault, and from which no node can be left out.

    The part begins as what is just before a suspect value: one node, then what is two steps away, and so on. What is
    found is shrunk: each node in turn becomes an input, if the fault stays.

    Args:
        model: Shows the fault on `inputs`.
        inputs: One for each input of the model.
        suspects: Names of values at which to look, the likeliest first.
        shows: Whether a model shows the fault on inputs.

    Returns:
        A part and its inputs; the model itself if no part shows the fault.
    """
    deadline = time.monotonic() + _SECONDS
    seen = _seen(model, inputs)
    for nodes, outputs in _cones(model, suspects):
        if time.monotonic() > deadline:
            break
        part = extract(model, nodes, outputs, seen)
        if part is not None and shows(*part):
            return _shrink(model, nodes, outputs, seen, part, shows, deadline)
    return model, inputs


def _seen(model: ir.Model, inputs: list[Any]) -> Mapping[str, Any]:
    names = [value.name for node in model.graph for value in node.outputs if value.name]
    try:
        return values_of(model, inputs, names)
    except (ExecutionError, UnsupportedError):
        return {value.name or "": array for value, array in zip(model.graph.inputs, inputs, strict=True)}


def _cones(model: ir.Model, suspects: Collection[str]) -> Iterator[tuple[set[str], list[str]]]:
    """First outputs of the nodes before a suspect value, and the value; small cones of all suspects come first."""
    made = {value.name: value for node in model.graph for value in node.outputs if value.name}
    values = [made[name] for name in suspects if name in made][:_MOST_VALUES]
    total = len(model.graph)
    depth = 1
    known: set[frozenset[str]] = set()
    while values:
        sizes = set()
        for value in values:
            cone = frozenset(node.outputs[0].name or "" for node in backward_cone([value], depth))
            sizes.add(len(cone))
            if cone not in known:
                known.add(cone)
                yield set(cone), [value.name or ""]
        if depth > total or max(sizes) == total:
            return
        depth = depth + 1 if depth < 4 else depth * 2


def _shrink(
    model: ir.Model,
    nodes: set[str],
    outputs: list[str],
    seen: Mapping[str, Any],
    part: Part,
    shows: Shows,
    deadline: float,
) -> Part:
    """Leave out one node after the other, the farthest from the output first, until none can be left out."""
    order = [node.outputs[0].name or "" for node in model.graph if node.outputs]
    made = {node.outputs[0].name or "": node for node in model.graph if node.outputs}
    shrinking = True
    while shrinking and time.monotonic() < deadline:
        shrinking = False
        for name in [name for name in order if name in nodes]:
            left = nodes - {name}
            wanted = outputs
            if name in outputs:  # without it, what it reads is what the part gives
                wanted = [v.name for v in read_values(made[name]) if v.name in left]
            smaller = extract(model, left, wanted, seen) if wanted else None
            if smaller is not None and shows(*smaller):
                nodes, outputs, part, shrinking = left, wanted, smaller, True
    return part
