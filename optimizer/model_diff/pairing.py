"""Which nodes are matched so far: the state that the three ways of matching share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from optimizer.model_diff.facts import Node, Side

__all__ = ["Matched", "Pairing"]


@dataclass(frozen=True)
class Matched:
    """Nodes of the first model that became nodes of the second.

    Attributes:
        before: Their numbers in the first model, ascending.
        after: Their numbers in the second.
        by: What tells: `"provenance"`, `"name"` or `"structure"`.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    by: str


@dataclass
class Pairing:
    """All that is matched.

    Attributes:
        before: The first model.
        after: The second.
        matched: In the order in which it was found.
        to_after: For each node of the first model that has exactly one counterpart, which has no other: that one.
        to_before: The same the other way round.
    """

    before: Side
    after: Side
    matched: list[Matched] = field(default_factory=list)
    to_after: dict[int, int] = field(default_factory=dict)
    to_before: dict[int, int] = field(default_factory=dict)
    _partners: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _done_after: set[int] = field(default_factory=set)

    def pair(self, before: int, after: int, by: str) -> None:
        """One node became one node."""
        self.to_after[before] = after
        self.to_before[after] = before
        self.group((before,), (after,), by)

    def group(self, before: tuple[int, ...], after: tuple[int, ...], by: str) -> None:
        """Some nodes became some other nodes."""
        self.matched.append(Matched(tuple(sorted(before)), tuple(sorted(after)), by))
        self._partners.update(dict.fromkeys(before, after))
        self._done_after.update(after)

    def partners_of(self, before: int) -> tuple[int, ...]:
        """What a node of the first model became; empty if nothing."""
        return self._partners.get(before, ())

    def is_open(self, before: int | None, after: int | None) -> bool:
        """Whether both nodes exist and neither is matched."""
        return self.is_open_before(before) and self.is_open_after(after)

    def is_open_before(self, index: int | None) -> bool:
        """Whether this node of the first model is not matched."""
        return index is not None and index not in self._partners

    def is_open_after(self, index: int | None) -> bool:
        """Whether this node of the second model is not matched."""
        return index is not None and index not in self._done_after

    def open_before(self) -> Iterator[Node]:
        """The nodes of the first model that are not matched."""
        return (node for node in self.before.nodes if node.index not in self._partners)

    def open_after(self) -> Iterator[Node]:
        """The nodes of the second model that are not matched."""
        return (node for node in self.after.nodes if node.index not in self._done_after)
