"""Memory and time of the steps of a segment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from passes.tiling.cut import WHOLE
from passes.tiling.facts import Facts, seconds
from passes.tiling.steps import TAIL, WINDOW, Key, Step

__all__ = ["Need", "need_of"]


@dataclass(frozen=True)
class Need:
    """What a segment needs.

    Attributes:
        bytes: The most that its steps need at one time, beyond what is there before it; freed inputs count against it.
        seconds: What it takes.
    """

    bytes: int
    seconds: float


def need_of(facts: Facts, steps: Sequence[Step], targets: Collection[ir.Value], dying: Collection[ir.Value]) -> Need:
    """Run the steps in thought.

    Args:
        facts: Of the graph.
        steps: In order.
        targets: What is needed behind them.
        dying: What is there before them and not needed behind them.
    """
    made = {step.gives for step in steps}
    unstored = _unstored(facts, steps)
    reads: dict[Key, dict[Key, int]] = {}
    flops: dict[Key, float] = {}
    last: dict[Key, int] = {}
    for number, step in enumerate(steps):
        given = [operand for operand in step.operands if isinstance(operand, Key)]
        reads[step.gives] = {}
        for key in given:
            reads[step.gives] |= _seen(facts, key, reads[key]) if key in unstored else {key: _bytes(facts, key)}
        flops[step.gives] = step.flops + sum(flops[key] for key in given if key in unstored)
        if step.gives not in unstored:
            last.update(dict.fromkeys(reads[step.gives], number))
    kept = {Key(target) for target in targets}
    ends: dict[int, list[Key]] = {}
    for key, number in last.items():
        if key not in kept and (key in made or key.value in dying):
            ends.setdefault(number, []).append(key)
    joined = _joined(facts, steps)
    wholes = set(joined.values())
    begun: set[Key] = set()
    alive = most = 0
    time = 0.0
    for number, step in enumerate(steps):
        if step.gives in unstored:
            continue
        holder = joined.get(step.gives, step.gives)
        if holder not in begun and not (holder == Key(holder.value) and facts.is_apart(holder.value)):
            begun.add(holder)
            alive += _bytes(facts, holder)
            most = max(most, alive - _in_place(facts, step, ends.get(number, ())))
        read = [size for key, size in reads[step.gives].items() if joined.get(key) != step.gives]
        if read or step.gives not in wholes:
            written = sum(read) if step.gives in wholes else _bytes(facts, step.gives)
            time += seconds(flops[step.gives], written + sum(read))
        alive -= sum(_bytes(facts, key) for key in ends.get(number, ()) if key not in joined)
    return Need(most, time)


def _joined(facts: Facts, steps: Sequence[Step]) -> dict[Key, Key]:
    """Pieces that are written where they belong in the whole, and the whole; so are new rows behind those before."""
    result: dict[Key, Key] = {}
    for step in steps:
        axis = step.attributes.get("axis") if step.op_type == "Concat" else None
        pieces = [operand for operand in step.operands if isinstance(operand, Key)]
        whole = all(key.value == step.gives.value for key in pieces)
        if axis is None or not whole or not facts.is_joined(step.gives.value, axis.as_int()):
            continue
        tails = sum(key.window.size for key in pieces if key.part == TAIL)
        if facts.is_aligned(step.gives.value, axis.as_int(), tails):
            result.update(dict.fromkeys((key for key in pieces if key.part != TAIL), step.gives))
    return result


def _seen(facts: Facts, key: Key, sources: dict[Key, int]) -> dict[Key, int]:
    """What is read for something that is not stored: of a window, no more than that."""
    return {source: min(size, _bytes(facts, key)) if key.part == WINDOW else size for source, size in sources.items()}


def _in_place(facts: Facts, step: Step, dying: Collection[Key]) -> int:
    """Bytes of an operand that the result is written over, by a compiler that fuses."""
    return _bytes(facts, step.over) if facts.fused and step.over is not None and step.over in dying else 0


def _unstored(facts: Facts, steps: Sequence[Step]) -> set[Key]:
    """What is fused to its only user, or a window that is read where it lies."""
    users = Counter(key for step in steps for key in step.operands if isinstance(key, Key))
    copied = {
        key for step in steps if step.op_type in ("Concat", "Slice") for key in step.operands if isinstance(key, Key)
    }
    result = set()
    for step in steps:
        key = step.gives
        if key.part == WINDOW:
            if key not in copied and _is_seen(facts, key):
                result.add(key)
            continue
        fused = key.value in facts.unstored if not key.part else facts.fused and key.part.startswith("summand")
        if users[key] == 1 and key not in copied and fused:
            result.add(key)
    return result


def _is_seen(facts: Facts, key: Key) -> bool:
    """Whether a window is read where it lies. Inputs of the graph are not: their channels lie first."""
    value, axis = key.value, key.window.axis
    return facts.is_joined(value, axis) and facts.is_aligned(value, axis) and not value.is_graph_input()


def _bytes(facts: Facts, key: Key) -> int:
    whole = facts.bytes(key.value)
    shape = facts.shape(key.value)
    if key.window == WHOLE or not shape or not math.prod(shape):
        return whole
    return whole * key.window.size // shape[key.window.axis]
