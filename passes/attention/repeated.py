"""Keys and values that are repeated for the query heads that share them.

    k[B, K, T, D] as [B, K, 1, T, D], repeated to [B, K, G, T, D], as [B, K * G, T, D]

They are repeated by an `Expand` or a `Tile`, or put behind themselves by a `Concat`, and where the axis stands then
does not matter. Copies of all heads one after the other, `[B, G, K, T, D]`, are something else: a query head finds
another key in its place.

Letters: B batch, K key and value heads, G = H / K, T keys, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.query import is_op
from optimizer.ir.shapes import Shapes
from optimizer.ir.views import Atom, Axes, Step, axes_after, chain_back, nearest, stages_of

__all__ = ["Repeat", "unrepeated"]


@dataclass(frozen=True)
class Repeat:
    """What is repeated.

    Attributes:
        times: G.
        value: A value.
        steps: The nodes that make `[B, K, T, D]` of it.
        passed: The nodes that are passed over.
    """

    times: int
    value: ir.Value
    steps: list[Step]
    passed: list[ir.Node]


def unrepeated(shapes: Shapes, value: ir.Value) -> Repeat | None:
    """What the value `[B, K * G, T, D]` repeats; `None` when it repeats nothing in the way that heads are shared."""
    chain = chain_back(value)
    repeat = chain[-1].producer()
    found = None if repeat is None else _repeated_axis(shapes, repeat)
    if repeat is None or found is None or repeat.inputs[0] is None:
        return None
    axis, times = found
    stages = stages_of(shapes, chain_back(repeat.inputs[0]))
    copies = (Atom(times),)
    axes: Axes | None = (*stages[0].axes[:axis], copies, *stages[0].axes[axis + 1 :])
    nodes = [node for link in chain[:-1] if (node := link.producer()) is not None]
    for node in reversed(nodes):
        dims = shapes.dims(node.outputs[0])
        axes = None if axes is None or dims is None else axes_after(node, axes, dims)
    if axes is None or len(axes) != 4 or axes[1][-1:] != copies:
        return None
    batch, heads, rows, size = axes
    nearby = nearest(stages, (batch, heads[:-1], rows, size))
    if nearby is None:
        return None
    index, steps = nearby
    passed = [*nodes, repeat, *(node for stage in stages[:index] if (node := stage.value.producer()) is not None)]
    return Repeat(times, stages[index].value, steps, passed)


def _repeated_axis(shapes: Shapes, node: ir.Node) -> tuple[int, int] | None:
    """Which axis of size 1 a node repeats, and how often, when it does nothing else."""
    copies = is_op(node, "Concat") and len(set(node.inputs)) == 1
    if not copies and not is_op(node, "Expand", "Tile"):
        return None
    before, after = shapes.dims(node.inputs[0]), shapes.dims(node.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return None
    changed = [axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    if len(changed) != 1 or before[changed[0]] != 1:
        return None
    times = after[changed[0]]
    return (changed[0], times) if isinstance(times, int) else None
