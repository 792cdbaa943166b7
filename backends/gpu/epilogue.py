"""What follows a heavy operator element by element, done on the block's tile before it is stored."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx import BufferStore, Expr, Stmt, Var

from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import TensorLoad, i64, known, loads_of, simplify, substitute

__all__ = ["Epilogue"]


@dataclass(frozen=True)
class Epilogue:
    """The element-wise tail of a heavy stage.

    Attributes:
        heavy: the heavy stage.
        tail: the stage that reads its result element by element, or `None`.
    """

    heavy: Stage
    tail: Stage | None

    @classmethod
    def of(cls, kernel: Kernel) -> Epilogue | None:
        """Of a kernel whose first stage is heavy; `None` if something follows that cannot be done on a tile."""
        heavy, *others = kernel.stages
        if not others:
            return cls(heavy, None)
        if len(others) == 1 and _reads_in_place(others[0], heavy) and not kernel.is_output(heavy.buffer):
            return cls(heavy, others[0])
        return None

    @property
    def target(self) -> Var:
        """What is written."""
        return (self.tail or self.heavy).buffer

    def value(self, indices: list[Expr], result: Expr) -> Expr:
        """One element of the target, given the heavy operator's."""
        if self.tail is None:
            return result

        def load(node: TensorLoad) -> Expr | None:
            return result if node.source.same_as(self.heavy.buffer) else None

        point = {a.var: i64(i) for a, i in zip(self.tail.spatial, indices, strict=True)}
        return substitute(self.tail.value, point, load)

    def store(self, indices: list[Expr], result: Expr) -> Stmt:
        """Finish one element and store it."""
        return BufferStore(self.target, self.value(indices, result), indices)


def _reads_in_place(tail: Stage, heavy: Stage) -> bool:
    """Whether an element of the tail needs the same element of the heavy stage only."""
    if tail.reduction or tail.kind or len(tail.spatial) != len(heavy.spatial):
        return False
    if any(known(simplify(a.extent - b.extent)) != 0 for a, b in zip(tail.spatial, heavy.spatial, strict=True)):
        return False
    own = [load for load in loads_of(tail.value) if load.source.same_as(heavy.buffer)]
    return all(
        index.same_as(axis.var) or (known(index) == 0 and known(axis.extent) == 1)
        for load in own
        for index, axis in zip(load.indices, tail.spatial, strict=True)
    )
