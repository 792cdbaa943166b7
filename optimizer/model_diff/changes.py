"""What differs between matched nodes, and what that makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from optimizer.model_diff.attributes import default_texts
from optimizer.model_diff.facts import Node, Read, Side
from optimizer.model_diff.pairing import Matched, Pairing
from optimizer.model_diff.weights import WeightChange, WeightComparison

__all__ = ["Change", "counterpart_weights", "kind_of", "node_changes"]


@dataclass(frozen=True)
class Change:
    """One difference between two matched nodes.

    Attributes:
        what: `"operator"`, `"attribute"`, `"type"` (of an output, in what both models know), `"weight"` or `"input"`
            (read from elsewhere).
        name: Of the attribute, the output, the weight; of an input its number.
        before: What it was, `""` if it was not there.
        after: What it is.
    """

    what: str
    name: str
    before: str
    after: str

    def __str__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"{self.what}{name}: {self.before or 'none'} -> {self.after or 'none'}"


def counterpart_weights(pairing: Pairing) -> Iterator[tuple[str, str]]:
    """Weights that stand at the same place of paired nodes."""
    for old, new in pairing.to_after.items():
        for ours, theirs in zip(pairing.before.nodes[old].inputs, pairing.after.nodes[new].inputs, strict=False):
            if ours.weight is not None and theirs.weight is not None:
                yield ours.weight, theirs.weight


def kind_of(matched: Matched, pairing: Pairing, changes: tuple[Change, ...]) -> str:
    """`same`, `rewired`, `changed`, `replaced`, `fused`, `split` or `rewritten`."""
    before, after = len(matched.before), len(matched.after)
    if before > 1 or after > 1:
        return "rewritten" if min(before, after) > 1 else ("fused" if before > 1 else "split")
    if pairing.before.nodes[matched.before[0]].op != pairing.after.nodes[matched.after[0]].op:
        return "replaced"
    if not changes:
        return "same"
    return "rewired" if all(change.what == "input" for change in changes) else "changed"


def node_changes(old: Node, new: Node, pairing: Pairing, weights: WeightComparison) -> Iterator[Change]:
    """Compare two nodes.

    Args:
        old: Of the first model.
        new: Of the second.
        pairing: Says whether their inputs come from the same nodes.
        weights: Says whether two weights differ.
    """
    if old.op != new.op:
        yield Change("operator", "", old.op, new.op)
    before, after = _attributes(old, pairing.before), _attributes(new, pairing.after)
    for name in sorted(before.keys() | after.keys()):
        is_written = name in old.attributes or name in new.attributes
        if before.get(name) != after.get(name) and (is_written or old.op == new.op):
            yield Change("attribute", name, before.get(name, ""), after.get(name, ""))
    for mine, other in zip(old.outputs, new.outputs, strict=False):
        if mine.contradicts(other):
            yield Change("type", mine.value, mine.type, other.type)
    if len(old.outputs) != len(new.outputs):
        yield Change("type", "outputs", str(len(old.outputs)), str(len(new.outputs)))
    yield from _input_changes(old, new, pairing, weights)


def _attributes(node: Node, side: Side) -> dict[str, str]:
    """With the defaults of those that are left out."""
    return {**default_texts(node.op, side.opsets.get(node.op.rpartition("::")[0], 0)), **node.attributes}


def _input_changes(old: Node, new: Node, pairing: Pairing, weights: WeightComparison) -> Iterator[Change]:
    nothing = Read("")
    for slot in range(max(len(old.inputs), len(new.inputs))):
        ours = old.inputs[slot] if slot < len(old.inputs) else nothing
        theirs = new.inputs[slot] if slot < len(new.inputs) else nothing
        if ours.weight is not None and theirs.weight is not None:
            change = weights.change(ours.weight, theirs.weight)
            if change is not None and change.kind != "renamed":
                yield Change("weight", ours.weight, change.type_before, _weight_text(change))
        elif not _same_source(ours, theirs, pairing):
            yield Change("input", str(slot), _source_text(ours, pairing.before), _source_text(theirs, pairing.after))


def _weight_text(change: WeightChange) -> str:
    if change.max_difference is not None:
        return f"{change.type_after}, differs by at most {change.max_difference:.3g}"
    return change.type_after if change.type_after != change.type_before else f"{change.type_after}, other content"


def _same_source(ours: Read, theirs: Read, pairing: Pairing) -> bool:
    if ours.source is not None and theirs.source is not None:
        expected = pairing.to_after.get(ours.source)
        if expected is None:
            return theirs.source in pairing.partners_of(ours.source)
        return expected == theirs.source and ours.slot == theirs.slot
    return (ours.source, ours.weight, ours.value) == (theirs.source, theirs.weight, theirs.value)


def _source_text(read: Read, side: Side) -> str:
    if read.weight is not None:
        return f"weight {read.weight} {side.weights[read.weight].kind}"
    if read.source is None:
        return read.value
    node = side.nodes[read.source]
    return f"{node.op} {node.label}" + (f" output {read.slot}" if read.slot else "")
