"""A matrix product taken apart, as the rules of all targets need it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from backends.relax.kernel import Axis, Stage
from backends.relax.loops import Expr, TensorLoad, uses

__all__ = ["Product"]

Left = TypeVar("Left", bound=Expr)


@dataclass(frozen=True)
class Product(Generic[Left]):
    """A matrix product taken apart.

    Attributes:
        batch: the axes on which B depends.
        rows: the other ones, swept as rows of one matrix.
        lead: both, in the order of the result.
        column: the last spatial axis.
        depth: the reduced axis.
        left: an element of A, in the stage's axis variables.
        right: the load of B.
        width: the panel width, or `None` for a B that lies as [..., K, N].
    """

    batch: list[Axis]
    rows: list[Axis]
    lead: list[Axis]
    column: Axis
    depth: Axis
    left: Left
    right: TensorLoad
    width: int | None

    @classmethod
    def of(cls, stage: Stage, left: Left, right: TensorLoad) -> Self | None:
        """The product that a stage with one reduced axis is; `None` if B lies neither in panels nor in rows."""
        *lead, column = stage.spatial
        (depth,) = stage.reduction
        batch = [a for a in lead if any(uses(i, a.var) for i in right.indices)]
        width = int(stage.annotations.get("tersor.width", 0)) or None  # type: ignore[call-overload]
        if width is None and not right.indices[-1].same_as(column.var):
            return None
        return cls(batch, [a for a in lead if a not in batch], lead, column, depth, left, right, width)

    @property
    def rows_together(self) -> int:
        """How many rows of a panel lie side by side: [P, K / T, W * T]."""
        return 1 if self.width is None else int(self.right.source.shape[-1]) // self.width
