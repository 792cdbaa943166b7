"""Queries, keys and values that are gathered out of one projection by their number.

v[B, S, 3 * D] seen as [3, B, S, D] or the like; Gather(v, 0), Gather(v, 1), Gather(v, 2)  ->  Split(v)
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.query import input_at, int_attribute, is_op, known_ints
from optimizer.ir.shapes import Shapes
from optimizer.ir.views import Axes, Stage, Step, axes_after, chain_back, stages_of, steps_between
from passes.attention.build import Place, sweep

__all__ = ["split_gathered"]


@dataclass(frozen=True)
class _Part:
    """An input that is one of several along an axis of another value.

    Attributes:
        number: Which one.
        gather: The node that takes it.
        stages: The other value, and what it is a view of.
        axes: The axes of the input, in atoms of `stages`.
        chain: The nodes from the gather to the input.
    """

    number: int
    gather: ir.Node
    stages: list[Stage]
    axes: Axes
    chain: list[ir.Node]

    @property
    def along(self) -> Axes:
        """The axis that is gathered along, by itself."""
        axis = int_attribute(self.gather, "axis", 0)
        return (self.stages[0].axes[axis],)


def split_gathered(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Give an `Attention` the parts of a Split where it has those of Gathers, when nodes are saved by it."""
    shapes = editor.shapes
    stages: dict[ir.Value, list[Stage]] = {}
    parts = {index: _part(shapes, input_at(node, index), stages) for index in range(3)}
    first = parts[2]
    if first is None:
        return
    # All three, or the keys and values alone, where the queries come from elsewhere.
    found = {index: part for index, part in parts.items() if part is not None and _goes_with(part, first)}
    count = len(found)
    numbers = sorted(part.number for part in found.values())
    if numbers != list(range(count)) or count < 2 or [atom.size for atom in first.along[0]] != [count]:
        return
    source, steps = _nearest(first)
    old = list(dict.fromkeys(inner for part in found.values() for inner in (*part.chain, part.gather)))
    if source is None or len(steps) + 1 >= len(old):
        return
    size = _last_size(shapes, input_at(node, 2))
    if size is None:
        return
    place = Place(editor, scope, _first_of(scope.graph, [part.gather for part in found.values()]), old)
    whole = place.walk(source, steps)
    split = ir.node("Split", [whole, place.ints([size] * count, "qkv_sizes")], {"axis": -1}, num_outputs=count)
    place.insert(split, "qkv_part")
    for index, part in found.items():
        node.replace_input_with(index, split.outputs[part.number])
    sweep(editor, old)


def _goes_with(part: _Part, other: _Part) -> bool:
    """Whether two inputs are cut out of one value in the same way."""
    same = part.gather.inputs[0] is other.gather.inputs[0] and part.along == other.along
    return same and part.axes == other.axes


def _part(shapes: Shapes, value: ir.Value | None, stages: dict[ir.Value, list[Stage]]) -> _Part | None:
    if value is None:
        return None
    chain = chain_back(value)
    gather = chain[-1].producer()
    if gather is None or not is_op(gather, "Gather") or gather.inputs[0] is None:
        return None
    number, whole = known_ints(input_at(gather, 1)), gather.inputs[0]
    if whole not in stages:
        stages[whole] = stages_of(shapes, chain_back(whole))
    if number is None or len(number) != 1 or shapes.dims(gather.inputs[1]) != () or not stages[whole]:
        return None
    axes = list(stages[whole][0].axes)
    del axes[int_attribute(gather, "axis", 0)]
    current: Axes | None = tuple(axes)
    nodes = [inner for inner in (link.producer() for link in reversed(chain[:-1])) if inner is not None]
    for inner in nodes:
        dims = shapes.dims(inner.outputs[0])
        current = None if current is None or dims is None else axes_after(inner, current, dims)
    return None if current is None else _Part(number[0], gather, stages[whole], current, nodes)


def _nearest(part: _Part) -> tuple[ir.Value | None, list[Step]]:
    """The stage that is nearest to the parts side by side in the last axis, and what makes them of it."""
    *outer, last = part.axes
    wanted = (*outer, (*part.along[0], *last))
    best: tuple[ir.Value | None, list[Step]] = (None, [])
    for index, stage in enumerate(part.stages):
        steps = steps_between(stage.axes, wanted)
        if steps is not None and (best[0] is None or len(steps) < len(best[1])):
            best = (part.stages[index].value, steps)
    return best


def _first_of(graph: ir.Graph, nodes: list[ir.Node]) -> ir.Node:
    """Whichever comes first in the graph."""
    wanted = set(nodes)
    return next(node for node in graph if node in wanted)


def _last_size(shapes: Shapes, value: ir.Value | None) -> int | None:
    dims = shapes.dims(value)
    return dims[-1] if dims and isinstance(dims[-1], int) else None
