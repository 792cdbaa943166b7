"""Another order of the units of a graph, in which less is alive at one time.

Of the units that could run next, the one runs that leaves the least behind: what it stores, less what is read for the
last time. The order is kept only if its peak is lower; the best order of all is hard to find (Sethi 1975, "Complete
Register Allocation Problems").
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import onnx_ir as ir

from optimizer.ir.edit import Editor
from passes.tiling.facts import Facts, Unit
from passes.tiling.lifetimes import Lifetimes

__all__ = ["put_in_order"]


def put_in_order(editor: Editor, facts: Facts) -> Facts:
    """Move the nodes of the graph if that lowers the peak; gives the facts of the graph as it is then."""
    moved = dataclasses.replace(facts)
    moved.units = _greedy(facts)
    if _peak(moved) >= _peak(facts):
        return facts
    graph = facts.model.graph
    nodes = [node for unit in moved.units for node in unit.nodes]
    graph.remove(nodes)
    graph.extend(nodes)
    editor.modified = True
    return moved


def _peak(facts: Facts) -> int:
    lifetimes = Lifetimes(facts)
    return max((lifetimes.peak(index) for index in range(len(facts.units))), default=0)


def _greedy(facts: Facts) -> list[Unit]:
    outputs = set(facts.model.graph.outputs)
    made = {value for unit in facts.units for value in unit.outputs}
    readers: dict[ir.Value, list[Unit]] = {}
    for unit in facts.units:
        for value in unit.reads:
            readers.setdefault(value, []).append(unit)
    waits = {unit: sum(value in made for value in unit.reads) for unit in facts.units}
    left = Counter({value: len(units) for value, units in readers.items()})
    place = {unit: index for index, unit in enumerate(facts.units)}
    ready = [unit for unit in facts.units if not waits[unit]]
    result: list[Unit] = []

    def growth(unit: Unit) -> tuple[int, int]:
        stored = sum(facts.bytes(value) for value in unit.outputs)
        freed = sum(facts.bytes(value) for value in unit.reads if left[value] == 1 and value not in outputs)
        return stored - freed, place[unit]

    while ready:
        unit = min(ready, key=growth)
        ready.remove(unit)
        result.append(unit)
        left.subtract(unit.reads)
        for value in unit.outputs:
            for reader in readers.get(value, ()):
                waits[reader] -= 1
                if not waits[reader]:
                    ready.append(reader)
    return result
