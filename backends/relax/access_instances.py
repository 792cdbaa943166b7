"""The accesses of a loop nest, enumerated: which element each touches in each iteration, and when."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
from tvm import tirx

from backends.relax.index_values import Integers, NotEnumerable, values_of

__all__ = ["SINGLY", "TOGETHER", "Access", "Instances", "Loop", "Scope", "lanes", "largest", "type_below"]

_NEVER = np.iinfo(np.int64).max
TOGETHER, SINGLY = 0, 1
"""The two clocks: lanes run together, or one after the other."""


@dataclass(eq=False)
class Loop:
    """A loop, and how many ticks an iteration takes by each clock; known when the body was walked."""

    var: tirx.Var
    extent: tirx.Expr
    most: int
    kind: int
    ticks: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Scope:
    """What is around a statement: loops, outermost first, and conditions with the value they have."""

    loops: tuple[Loop, ...] = ()
    conditions: tuple[tuple[tirx.Expr, bool], ...] = ()


@dataclass(frozen=True)
class Access:
    """A load or a store: what is around it, its time in the first iterations, and which element it touches."""

    scope: Scope
    start: tuple[int, int]
    indices: tuple[tirx.Expr, ...]


class Instances:
    """An access in all iterations; times and iterations are made when they are asked for, since they may be large.

    Args:
        access: the load or store.
        sizes: the shape of the buffer.
        most: of each loop, only so many iterations.

    Attributes:
        elements: row-major positions.
        alike: whether both clocks show the same.
    """

    def __init__(self, access: Access, sizes: list[int], most: int) -> None:
        self._start, self._loops = access.start, access.scope.loops
        self._values, exists = _grid(access.scope, most)
        self._shape = (*(min(loop.most, most) for loop in self._loops), lanes(access))
        elements: Integers = np.zeros((), np.int64)
        for size, index in zip(sizes, access.indices, strict=True):
            elements = elements * size + values_of(index, self._values)
        inside = (elements >= 0) & (elements < prod(sizes)) & exists  # else: a condition is false
        self._real = None if inside.all() else np.broadcast_to(inside, self._shape)
        self.elements = self._of_real(elements, prod(sizes))
        self.alike = access.start[0] == access.start[1] and all(x.ticks[0] == x.ticks[1] for x in self._loops)

    def times(self, clock: int) -> Integers:
        """By one of the clocks."""
        ticks = [(loop, loop.ticks[clock]) for loop in self._loops]
        passed = sum((self._values[loop.var] * each for loop, each in ticks), np.zeros((), np.int64))
        return self._of_real(np.asarray(passed + self._start[clock]), self.end(clock))

    def end(self, clock: int) -> int:
        """By one of the clocks, when the last iteration is over."""
        sizes = zip(self._loops, self._shape, strict=False)
        return self._start[clock] + sum((size - 1) * loop.ticks[clock] for loop, size in sizes) + 1

    @property
    def parallel(self) -> list[Loop]:
        """The parallel loops around it."""
        return [loop for loop in self._loops if loop.kind == tirx.ForKind.PARALLEL]

    def tasks(self, loop: Loop) -> Integers:
        """The iterations of a parallel loop."""
        return self._of_real(self._values[loop.var], loop.most)

    def _of_real(self, array: Integers, end: int) -> Integers:
        """The array in all iterations that there are; its values there are below `end`, so fewer bits may do."""
        narrow = array.astype(type_below(end))  # what is cut off belongs to no iteration
        spread = np.broadcast_to(narrow, self._shape)
        return spread.reshape(-1) if self._real is None else spread[self._real]


def largest(extent: tirx.Expr, scope: Scope) -> int:
    """The most iterations that a loop has in any iteration of those around it."""
    return max(0, int(values_of(extent, _grid(scope)[0]).max(initial=0)))


def lanes(access: Access) -> int:
    """How many elements it touches at a time."""
    return max((int(i.lanes) for i in access.indices if isinstance(i, tirx.Ramp)), default=1)


def _grid(scope: Scope, most: int = _NEVER) -> tuple[dict[tirx.Var, Integers], npt.NDArray[np.bool_]]:
    """Each loop variable's values along an axis of its own, and which iterations there are; the last axis is lanes'.

    Args:
        scope: the loops.
        most: of each loop, only so many iterations.
    """
    values: dict[tirx.Var, Integers] = {}
    exists = np.ones((1,) * (len(scope.loops) + 1), np.bool_)
    for axis, loop in enumerate(scope.loops):
        shape = [-1 if a == axis else 1 for a in range(len(scope.loops) + 1)]
        values[loop.var] = np.arange(min(loop.most, most), dtype=np.int64).reshape(shape)
        if not isinstance(loop.extent, tirx.IntImm):
            exists = exists & (values[loop.var] < values_of(loop.extent, values))
    for condition, truth in scope.conditions:
        with contextlib.suppress(NotEnumerable):  # data decides: it may be either
            exists = exists & (values_of(condition, values).astype(np.bool_) == truth)
    return values, exists


def type_below(end: int) -> type[np.int32 | np.int64]:
    """The narrowest of the two types that holds all numbers below `end`."""
    return np.int32 if end <= np.iinfo(np.int32).max else np.int64
