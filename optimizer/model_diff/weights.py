"""Which weights differ, and by how much.

Two weights are compared by content only where that cannot be avoided: the same tensor, or the same bytes of the same
file, need not be read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.ir.tensors import content_hash

__all__ = ["Weight", "WeightChange", "WeightComparison"]

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Weight:
    """One initializer.

    Attributes:
        key: Its name, behind that of its graph if that is not the main one.
        kind: Type and shape, such as `float32[768, 768]`.
        tensor: Its content; `None` where only a hash of it was kept.
        kept_digest: That hash.
    """

    key: str
    kind: str
    tensor: ir.TensorProtocol | None
    kept_digest: str = ""

    @classmethod
    def of(cls, key: str, tensor: ir.TensorProtocol) -> Weight:
        """The weight with this content."""
        name = "string" if tensor.dtype == ir.DataType.STRING else str(tensor.dtype.numpy().name)
        return cls(key, f"{name}[{', '.join(map(str, tensor.shape))}]", tensor)

    def digest(self) -> str:
        """A hash of type, shape and content."""
        return self.kept_digest if self.tensor is None else content_hash(self.tensor)

    def equals(self, other: Weight) -> bool:
        """Whether type, shape and bits are the same."""
        if self.tensor is other.tensor is not None:
            return True
        return self.kind == other.kind and self.digest() == other.digest()


@dataclass(frozen=True)
class WeightChange:
    """A weight that is not the same in both models.

    Attributes:
        kind: `"added"`, `"removed"`, `"renamed"` (the content is the same), `"merged"` (another weight has the same
            content), `"changed"` (the content), or `"reshaped"` (type or shape).
        before: Its name in the first model, `""` if it is not there.
        after: Its name in the second model.
        type_before: Element type and shape, such as `float32[768, 768]`.
        type_after: The same of the second.
        max_difference: The largest difference of two elements, infinite where only one of them is NaN; `None` where
            shapes differ or a content is not at hand.
    """

    kind: str
    before: str
    after: str
    type_before: str = ""
    type_after: str = ""
    max_difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON types; JSON has no number for an infinite difference, it is `None`."""
        finite = self.max_difference is not None and math.isfinite(self.max_difference)
        return {**self.__dict__, "max_difference": self.max_difference if finite else None}

    def __str__(self) -> str:
        name = self.before if self.before == self.after else " -> ".join(filter(None, (self.before, self.after)))
        kind = self.type_before if self.type_before == self.type_after or not self.type_after else self.type_after
        if self.type_before and self.type_after and self.type_before != self.type_after:
            kind = f"{self.type_before} -> {self.type_after}"
        by = "" if self.max_difference is None else f", differs by at most {self.max_difference:.3g}"
        return f"{name}: {kind}{by}"


class WeightComparison:
    """Which weights of two models differ.

    Args:
        before: The weights of the first model.
        after: Those of the second.
        counterparts: Keys of weights that stand at the same place of matched nodes.

    Attributes:
        changes: One entry for each weight that is not the same in both.
    """

    def __init__(
        self, before: Mapping[str, Weight], after: Mapping[str, Weight], counterparts: Iterable[tuple[str, str]]
    ) -> None:
        self._before = before
        self._after = after
        self._known: dict[tuple[str, str], WeightChange | None] = {}
        pairs = {key: key for key in before if key in after}
        taken = set(pairs.values())
        for old, new in counterparts:
            if old not in pairs and new not in taken:
                pairs[old] = new
                taken.add(new)
        found = [self.change(old, new) for old, new in pairs.items()]
        found += self._lone([w for w in before.values() if w.key not in pairs], taken)
        self.changes = tuple(change for change in found if change is not None)

    def change(self, old: str, new: str) -> WeightChange | None:
        """How two weights differ, `None` if they do not, not even in name."""
        if (old, new) not in self._known:
            self._known[old, new] = _compare(self._before[old], self._after[new])
        return self._known[old, new]

    def _lone(self, before: list[Weight], taken: set[str]) -> Iterable[WeightChange]:
        """What became of weights that have no counterpart; what has no partner of its type and shape is not read."""
        by_kind = defaultdict(list)
        for weight in self._after.values():
            by_kind[weight.kind].append(weight)
        by_digest: dict[str, list[str]] = defaultdict(list)
        for kind in {weight.kind for weight in before} & by_kind.keys():
            for weight in by_kind[kind]:
                by_digest[weight.digest()].append(weight.key)
        for weight in before:
            same = by_digest.get(weight.digest(), []) if weight.kind in by_kind else []
            free = next((key for key in same if key not in taken), None)
            if free is not None:
                taken.add(free)
                yield WeightChange("renamed", weight.key, free, weight.kind, weight.kind)
            elif same:
                yield WeightChange("merged", weight.key, same[0], weight.kind, weight.kind)
            else:
                yield WeightChange("removed", weight.key, "", type_before=weight.kind)
        for weight in self._after.values():
            if weight.key not in taken:
                yield WeightChange("added", "", weight.key, type_after=weight.kind)


def _compare(before: Weight, after: Weight) -> WeightChange | None:
    if before.kind != after.kind:
        return WeightChange("reshaped", before.key, after.key, before.kind, after.kind)
    if before.equals(after):
        if before.key == after.key:
            return None
        return WeightChange("renamed", before.key, after.key, before.kind, after.kind)
    tensors = before.tensor, after.tensor
    difference = None if tensors[0] is None or tensors[1] is None else max_difference(tensors[0], tensors[1])
    return WeightChange("changed", before.key, after.key, before.kind, after.kind, difference)


def max_difference(before: ir.TensorProtocol, after: ir.TensorProtocol) -> float | None:
    """The largest absolute difference of two elements, infinite where only one is NaN; `None` for strings."""
    if before.dtype == ir.DataType.STRING:
        return None
    ours, theirs = before.numpy().reshape(-1), after.numpy().reshape(-1)
    wide = np.complex128 if ours.dtype.kind == "c" else np.float64
    largest = 0.0
    for start in range(0, ours.size, _CHUNK):
        x, y = ours[start : start + _CHUNK].astype(wide), theirs[start : start + _CHUNK].astype(wide)
        with np.errstate(invalid="ignore"):
            differences = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
        worst = float(differences.max())
        if math.isnan(worst):
            return math.inf
        largest = max(largest, worst)
    return largest
