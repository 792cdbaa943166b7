"""Whether a scheduled kernel may write its result over one of its inputs: proved by going through every access.

The result may take the input's memory if no element of the input is read after the element of the result at the same
place was written. For known sizes the loops of a kernel are finite, so this is decided by enumeration: each load of
the input and each store of the result gets a time, a number that grows in the order of execution, for all iterations
at once, as arrays. What cannot be enumerated (other control flow, indices that are data, too many iterations) is
refused. The proof is about the loop nest as the rule wrote it; nothing is assumed of the rule.

* A load and a store in one statement have the same time: the load is first.
* The lanes of a vectorized loop run together, or one after the other where TVM cannot vectorize: both must do.
* Iterations of a parallel loop run in any order: what one of them writes, another must not read.
* Where a condition is data, both of its sides count as executed.

A kernel that does so must not read the input by a name of its own: `tirx.noalias` promises LLVM that parameters do not
overlap. `reading_result` gives the kernel that reads the result's buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad

from backends.relax.access_instances import SINGLY, TOGETHER, Access, Instances, Loop, Scope, lanes, largest, type_below
from backends.relax.index_values import NotEnumerable

__all__ = ["Overwriting", "reading_result"]

_MOST = 1 << 22
"""Elements up to which a buffer is enumerated: some 100 ms."""
_REPEATS = 6
"""Accesses to an element, on average, up to which they are enumerated: a normalization reads each three times."""
_POINTERS = frozenset({"address_of", "tvm_access_ptr"})
_FIRST = 3
"""Iterations of each loop that are tried before all are."""


class Overwriting:
    """Answers for one kernel, with what was found out about it kept.

    Args:
        kernel: a scheduled kernel; its parameters are inputs and results.
    """

    def __init__(self, kernel: tirx.PrimFunc) -> None:
        self._kernel = kernel
        self._walk: _Walk | None = None
        self._answers: dict[tuple[int, int], bool] = {}

    def allowed(self, source: int, target: int) -> bool:
        """Whether the parameter at `target`, a result, may lie where the one at `source`, an input, does."""
        if (source, target) not in self._answers:
            try:
                self._answers[source, target] = self._decide(source, target)
            except NotEnumerable:
                self._answers[source, target] = False
        return self._answers[source, target]

    def _decide(self, source: int, target: int) -> bool:
        read, written = self._kernel.params[source], self._kernel.params[target]
        sizes, results = _shape(read), _shape(written)
        if sizes is None or sizes != results or str(read.dtype) != str(written.dtype):
            return False
        count = prod(sizes)
        if not 0 < count <= _MOST:
            return False
        if self._walk is None:
            self._walk = _Walk(self._kernel)
        walk = self._walk
        loads, stores = walk.loads.get(read, []), walk.stores.get(written, [])
        if read in walk.stores or read in walk.elsewhere or written in walk.elsewhere:
            return False
        if not _enumerable(loads, count) or not _enumerable(stores, count):
            return False
        return all(
            _ordered([Instances(a, sizes, most) for a in loads], [Instances(a, sizes, most) for a in stores], count)
            for most in (_FIRST, count)  # what is wrong is mostly so at the beginning
        )


def reading_result(kernel: tirx.PrimFunc, source: int, target: int) -> tirx.PrimFunc:
    """The kernel that loads from its parameter at `target` what it loaded from the one at `source`."""
    read, written = kernel.params[source], kernel.params[target]

    def load(node: TensorLoad) -> tirx.Expr:
        return tirx.BufferLoad(written, list(node.indices)) if node.source.same_as(read) else node

    body = tvm_ffi.structural_map(kernel.body, [(TensorLoad, load)])
    changed = tirx.PrimFunc(kernel.params, body, kernel.ret_type)
    for key, value in (kernel.attrs or {}).items():
        changed = changed.with_attr(key, value)
    return changed


def _shape(buffer: tirx.Var) -> list[int] | None:
    dims = [int(d.value) for d in buffer.shape if isinstance(d, tirx.IntImm)]
    return dims if len(dims) == len(buffer.shape) else None


class _Walk:
    """The loads of and the stores to each buffer of a kernel, with their times.

    Raises:
        NotEnumerable: the kernel does something that cannot be enumerated.
    """

    def __init__(self, kernel: tirx.PrimFunc) -> None:
        self.loads: dict[tirx.Var, list[Access]] = {}
        self.stores: dict[tirx.Var, list[Access]] = {}
        self.elsewhere: set[tirx.Var] = set()
        self._visitors: dict[Any, Callable[..., tuple[int, int]]] = {
            tirx.SeqStmt: self._sequence,
            tirx.For: self._for,
            tirx.BufferStore: self._store,
            tirx.IfThenElse: self._condition,
            tirx.AllocBuffer: lambda *_: (0, 0),
            tirx.Evaluate: self._evaluate,
        }
        self._parameters = set(kernel.params)
        self._statement(kernel.body, Scope(), (0, 0))

    def _statement(self, stmt: tirx.Stmt, scope: Scope, start: tuple[int, int]) -> tuple[int, int]:
        """Note the accesses of a statement that begins at these times; gives the ticks that it takes."""
        visit = self._visitors.get(type(stmt))
        if visit is None:
            raise NotEnumerable(f"a {type(stmt).__name__}")
        return visit(stmt, scope, start)

    def _sequence(self, stmt: Any, scope: Scope, start: tuple[int, int]) -> tuple[int, int]:
        now = start
        for part in stmt.seq:
            now = _sum(now, self._statement(part, scope, now))
        return now[0] - start[0], now[1] - start[1]

    def _for(self, stmt: Any, scope: Scope, start: tuple[int, int]) -> tuple[int, int]:
        if not isinstance(stmt.min, tirx.IntImm) or int(stmt.min.value) != 0:
            raise NotEnumerable("a loop that does not begin at 0")
        kind = int(stmt.kind)
        if kind == tirx.ForKind.PARALLEL and any(outer.kind == kind for outer in scope.loops):
            raise NotEnumerable("a parallel loop in another")
        loop = Loop(stmt.loop_var, stmt.extent, largest(stmt.extent, scope), kind)
        body = self._statement(stmt.body, Scope((*scope.loops, loop), scope.conditions), start)
        together = kind == tirx.ForKind.VECTORIZED
        loop.ticks = (0 if together else body[TOGETHER], body[SINGLY])
        return body[TOGETHER] * (1 if together else loop.most), body[SINGLY] * loop.most

    def _store(self, stmt: Any, scope: Scope, start: tuple[int, int]) -> tuple[int, int]:
        self._note_loads([stmt.value, *stmt.indices], scope, start)
        self.stores.setdefault(stmt.buffer, []).append(Access(scope, start, tuple(stmt.indices)))
        return 1, 1

    def _condition(self, stmt: Any, scope: Scope, start: tuple[int, int]) -> tuple[int, int]:
        self._note_loads([stmt.condition], scope, start)
        now = _sum(start, (1, 1))
        for side, truth in ((stmt.then_case, True), (stmt.else_case, False)):
            if side is not None:
                inside = Scope(scope.loops, (*scope.conditions, (stmt.condition, truth)))
                now = _sum(now, self._statement(side, inside, now))
        return now[0] - start[0], now[1] - start[1]

    def _evaluate(self, stmt: Any, *_: Any) -> tuple[int, int]:
        """An intrinsic: what it does with a buffer is its own business."""
        self._note_all(stmt.value)
        return 1, 1

    def _note_pointers(self, call: Call) -> None:
        if str(getattr(call.op, "name", "")).rpartition(".")[2] in _POINTERS:
            self._note_all(call)

    def _note_all(self, expr: tirx.Expr) -> None:
        found: list[tirx.Var] = []
        tvm_ffi.structural_walk(expr, (tirx.Var, found.append))
        self.elsewhere |= self._parameters.intersection(found)

    def _note_loads(self, exprs: list[tirx.Expr], scope: Scope, start: tuple[int, int]) -> None:
        loads: list[TensorLoad] = []
        found: list[tirx.Var] = []
        for expr in exprs:
            tvm_ffi.structural_walk(
                expr, [(TensorLoad, loads.append), (tirx.Var, found.append), (Call, self._note_pointers)]
            )
        accesses = [(load.source, tuple(load.indices)) for load in loads if load.source in self._parameters]
        for buffer in {buffer for buffer, _ in accesses}:
            own = [indices for source, indices in accesses if source.same_as(buffer)]
            for position, indices in enumerate(own):
                if not any(_same(indices, other) for other in own[:position]):
                    self.loads.setdefault(buffer, []).append(Access(scope, start, indices))
        pointers = [v for v in self._parameters.intersection(found) if not any(v.same_as(b) for b, _ in accesses)]
        self.elsewhere.update(pointers)


def _same(a: tuple[tirx.Expr, ...], b: tuple[tirx.Expr, ...]) -> bool:
    return all(tvm_ffi.structural_equal(x, y) for x, y in zip(a, b, strict=True))


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _enumerable(accesses: list[Access], count: int) -> bool:
    total = sum(prod(loop.most for loop in access.scope.loops) * lanes(access) for access in accesses)
    return 0 < total <= _REPEATS * count


def _ordered(loads: list[Instances], stores: list[Instances], count: int) -> bool:
    alike = all(instances.alike for instances in (*loads, *stores))
    clocks = (TOGETHER,) if alike else (TOGETHER, SINGLY)
    parallel = {loop for instances in stores for loop in instances.parallel}
    return all(_read_before_written(loads, stores, count, clock) for clock in clocks) and all(
        _in_one_task(loads, stores, count, loop) for loop in parallel
    )


def _read_before_written(loads: list[Instances], stores: list[Instances], count: int, clock: int) -> bool:
    """Whether each element is read for the last time before, or as, it is written for the first time."""
    type_ = type_below(max(each.end(clock) for each in (*loads, *stores)))
    last = np.full(count, -1, type_)
    for load in loads:
        np.maximum.at(last, load.elements, load.times(clock))
    first = np.full(count, np.iinfo(type_).max, type_)
    for store in stores:
        np.minimum.at(first, store.elements, store.times(clock))
    return not bool((last > first).any())


def _in_one_task(loads: list[Instances], stores: list[Instances], count: int, loop: Loop) -> bool:
    """Whether an element that is read and written in a parallel loop is so by one iteration."""
    type_ = type_below(loop.most)
    least = np.full(count, np.iinfo(type_).max, type_)
    most = np.full(count, -1, type_)
    for store in stores:
        if loop in store.parallel:
            tasks = store.tasks(loop)
            np.minimum.at(least, store.elements, tasks)
            np.maximum.at(most, store.elements, tasks)
    for load in loads:
        if loop in load.parallel:
            tasks, highest = load.tasks(loop), most[load.elements]
            same = (least[load.elements] == tasks) & (highest == tasks)
            if ((highest >= 0) & ~same).any():
                return False
    return True
