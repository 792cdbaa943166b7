"""The order of the kernels of a function, for a lower peak of what lives at one time.

The order of the graph is one of many. Two others are tried, and the best is taken, the graph's own if none is better:

1. Greedy list scheduling: of the kernels whose operands are there, the one after which the least is alive.
2. Depth first from the results, operands with the largest need first (Sethi and Ullman, "The Generation of Optimal
   Code for Arithmetic Expressions", 1970, with bytes for registers; optimal for trees without in-place results).

Both take a time that grows little more than linearly. Sizes must be known: what is symbolic keeps its order.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import tvm
from tvm import relax, tirx
from tvm.ir import Call

from backends.relax.arena import rounded
from backends.relax.packing import element_type
from backends.relax.values import parts_of

__all__ = ["Task", "best_order", "peak_of", "reordered"]


@dataclass(frozen=True)
class Task:
    """One binding of a function.

    Attributes:
        bytes: what it allocates.
        reads: tasks that must run before; their results are alive while it runs.
        views: whether its result is memory of what it reads, which then lives as long as its own users need it.
    """

    bytes: int
    reads: tuple[int, ...]
    views: bool = False


def reordered(module: tvm.IRModule) -> tvm.IRModule | None:
    """The module with the kernels of its functions in a better order; `None` if there is none."""
    changed = module.clone()
    found = False
    for var, function in module.functions.items():
        if isinstance(function, relax.Function):
            better = _reordered(function)
            if better is not None:
                changed.update_func(var, better)
                found = True
    return changed if found else None


def _reordered(function: relax.Function) -> relax.Function | None:
    if len(function.body.blocks) != 1 or not isinstance(function.body.blocks[0], relax.DataflowBlock):
        return None
    bindings = list(function.body.blocks[0].bindings)
    tasks = _tasks(bindings)
    if tasks is None:
        return None
    order = best_order(tasks)
    if order == list(range(len(tasks))):
        return None
    block = relax.DataflowBlock([bindings[index] for index in order])
    body = relax.SeqExpr([block], function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


def _tasks(bindings: Sequence[relax.Binding]) -> list[Task] | None:
    made = {binding.var: index for index, binding in enumerate(bindings)}
    tasks = []
    for binding in bindings:
        kernel = isinstance(binding.value, Call) and binding.value.op == tvm.ir.Op.get("relax.call_tir")
        size = _bytes(binding.var.ty) if kernel else 0
        if size is None:
            return None
        reads = dict.fromkeys(made[var] for var in _variables(binding.value) if var in made)
        tasks.append(Task(size, tuple(reads), views=not kernel))
    return tasks


def _bytes(kind: tvm.ir.Type) -> int | None:
    """Of the tensors of a type, if they are known."""
    if isinstance(kind, relax.TupleType):
        parts = [_bytes(field) for field in kind.fields]
        return None if None in parts else sum(part for part in parts if part is not None)
    if not isinstance(kind, relax.TensorType) or not isinstance(kind.shape, relax.ShapeExpr):
        return None
    dims = [int(dim.value) for dim in kind.shape.values if isinstance(dim, tirx.IntImm)]
    if len(dims) != len(kind.shape.values):
        return None
    return rounded(prod(dims) * element_type(str(kind.dtype)).itemsize)


def _variables(expr: relax.Expr) -> list[relax.Var]:
    if isinstance(expr, relax.Var):
        return [expr]
    return [var for part in parts_of(expr) for var in _variables(part)]


def best_order(tasks: Sequence[Task]) -> list[int]:
    """The order with the lowest peak of three; the given one unless another is better."""
    users = _users(tasks)
    orders = [list(range(len(tasks))), _greedy(tasks, users), _depth_first(tasks, users)]
    return min(orders, key=lambda order: peak_of(tasks, order, users))


def peak_of(tasks: Sequence[Task], order: Sequence[int], users: Sequence[Sequence[int]] | None = None) -> int:
    """The most bytes that live at one time in this order. What nothing reads is a result, and lives to the end."""
    alive = _Alive(tasks, _users(tasks) if users is None else users)
    return max((alive.run(index) for index in order), default=0)


def _users(tasks: Sequence[Task]) -> list[list[int]]:
    """Which tasks need the memory that a task allocates: those that read it, or a view of it."""
    users: list[list[int]] = [[] for _ in tasks]
    roots: list[set[int]] = []
    has_reader = {operand for task in tasks for operand in task.reads}
    for index, task in enumerate(tasks):
        read = {root for operand in task.reads for root in roots[operand]}
        roots.append(read if task.views else {index})
        for root in () if task.views and index in has_reader else read:
            users[root].append(index)
    return users


class _Alive:
    """What lives while tasks run one after the other."""

    def __init__(self, tasks: Sequence[Task], users: Sequence[Sequence[int]]) -> None:
        self.tasks = tasks
        self.roots: list[list[int]] = [[] for _ in tasks]
        for root, readers in enumerate(users):
            for reader in readers:
                self.roots[reader].append(root)
        self.waiting = [len(readers) for readers in users]
        self.bytes = 0

    def growth(self, index: int) -> int:
        """How much more lives after a task than before."""
        dying = sum(self.tasks[root].bytes for root in self.roots[index] if self.waiting[root] == 1)
        return self.tasks[index].bytes - dying

    def run(self, index: int) -> int:
        """Run a task; gives the bytes that live while it runs."""
        self.bytes += self.tasks[index].bytes
        during = self.bytes
        for root in self.roots[index]:
            self.waiting[root] -= 1
            if self.waiting[root] == 0:
                self.bytes -= self.tasks[root].bytes
        return during


def _greedy(tasks: Sequence[Task], users: Sequence[Sequence[int]]) -> list[int]:
    alive = _Alive(tasks, users)
    missing = [len(task.reads) for task in tasks]
    readers: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for operand in task.reads:
            readers[operand].append(index)
    heap = [(alive.growth(index), index) for index, count in enumerate(missing) if count == 0]
    heapq.heapify(heap)
    done = [False] * len(tasks)
    order: list[int] = []
    while heap:
        _, index = heapq.heappop(heap)
        if done[index]:
            continue  # it was entered again, with less
        done[index] = True
        order.append(index)
        alive.run(index)
        fresh = []
        for reader in readers[index]:
            missing[reader] -= 1
            fresh.append(reader)
        for root in alive.roots[index]:
            if alive.waiting[root] == 1:  # whoever is left lets it die
                fresh.extend(reader for reader in users[root] if not done[reader])
        for reader in fresh:
            if missing[reader] == 0:
                heapq.heappush(heap, (alive.growth(reader), reader))
    return order


def _depth_first(tasks: Sequence[Task], users: Sequence[Sequence[int]]) -> list[int]:
    """Operands before their readers; of the operands, those first that need the most beyond what they leave."""
    need = [0] * len(tasks)
    left = [task.bytes for task in tasks]
    for index, task in enumerate(tasks):
        held = 0
        for operand in sorted(task.reads, key=lambda o: left[o] - need[o]):
            need[index] = max(need[index], held + need[operand])
            held += left[operand]
        need[index] = max(need[index], held + task.bytes)
        if task.views:
            left[index] = held
    order: list[int] = []
    state = [0] * len(tasks)
    for end in [index for index in range(len(tasks)) if not users[index]] + list(range(len(tasks))):
        stack = [end]
        while stack:
            index = stack[-1]
            if state[index] == 0:
                state[index] = 1
                stack.extend(o for o in sorted(tasks[index].reads, key=lambda o: need[o] - left[o]) if state[o] == 0)
            else:
                stack.pop()
                if state[index] == 1:
                    state[index] = 2
                    order.append(index)
    return order
