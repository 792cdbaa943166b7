"""Which elements of a GPU's memory a scheduled kernel touches: its code is followed, with numbers for its indices.

A launch's threads, its loops and some of its blocks become the axes of arrays, and each index an array over them. What
depends on data is unknown: such a condition counts as met.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad

from benchmarks.gpu_values import Array, Number, Values, element_bytes, in_memory, loads_in, name_of, operands

__all__ = ["Access", "Grid", "accesses", "grids"]

_IDS = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")
_COPY = "tersor_copy"


@dataclass(frozen=True)
class Grid:
    """One launch of a kernel.

    Attributes:
        extents: of its blocks and threads, by name (`blockIdx.x`); what is missing is 1.
        variables: that hold the ids.
        body: what a thread does.
    """

    extents: Mapping[str, int]
    variables: Mapping[Any, str]
    body: Any

    @property
    def blocks(self) -> int:
        """How many there are."""
        return math.prod(self.extents.get(name, 1) for name in _IDS[:3])

    @property
    def threads(self) -> int:
        """Of a block."""
        return math.prod(self.extents.get(name, 1) for name in _IDS[3:])


@dataclass(frozen=True)
class Access:
    """One load or store of a buffer in the device's memory, by all threads that execute it.

    Attributes:
        buffer: which.
        store: whether it writes.
        first: the places of the elements, over (loops..., blocks, threads); `None` where they depend on data.
        mask: where it is executed, alike.
        times: how often, for each element of these arrays: loops on which they do not depend.
        bytes: of one access.
        element: bytes of an element, which `first` counts.
    """

    buffer: Any
    store: bool
    first: Array | None
    mask: Array
    times: float
    bytes: int
    element: int


def grids(function: tirx.PrimFunc, sizes: Mapping[str, int]) -> list[Grid]:
    """The launches of a scheduled kernel whose buffers are flat.

    Args:
        function: the kernel.
        sizes: of its symbolic sizes, by name.
    """
    found: list[Grid] = []
    follower = _Follower(Values(sizes, {}), np.ones(1, bool))

    def visit(stmt: Any, extents: dict[str, int], variables: dict[Any, str], around: list[Any]) -> None:
        if isinstance(stmt, tirx.AttrStmt) and stmt.attr_key == "thread_extent":
            name = str(stmt.node.thread_tag)
            size = follower.known.value(stmt.value)
            visit(stmt.body, {**extents, name: int(size)}, {**variables, stmt.node.var: name}, around)
        elif extents:
            if _has_threads(stmt):  # what stands between the axes of one launch
                for part in _parts(stmt):
                    visit(part, extents, variables, around) if _has_threads(part) else around.append(part)
            else:
                found.append(Grid(extents, variables, tirx.SeqStmt([*around, stmt]) if around else stmt))
        else:
            for part in _parts(stmt):
                visit(part, extents, variables, [])

    visit(function.body, {}, {}, [])
    return found


def _parts(stmt: Any) -> list[Any]:
    if isinstance(stmt, tirx.SeqStmt):
        return list(stmt.seq)
    body = getattr(stmt, "body", None)
    return [] if body is None else [body]


def _has_threads(stmt: Any) -> bool:
    if isinstance(stmt, tirx.AttrStmt) and stmt.attr_key == "thread_extent":
        return True
    return any(_has_threads(part) for part in _parts(stmt))


def accesses(grid: Grid, blocks: Array, sizes: Mapping[str, int]) -> Iterator[Access]:
    """What some of the blocks of a launch do.

    Args:
        grid: the launch.
        blocks: their numbers, along x first.
        sizes: as for `grids`.
    """
    threads = np.arange(-(-grid.threads // 32) * 32, dtype=np.int64)
    ids: dict[str, Array] = {}
    for names, numbers in ((_IDS[:3], blocks.reshape(-1, 1)), (_IDS[3:], threads.reshape(1, -1))):
        for name in names:
            extent = grid.extents.get(name, 1)
            ids[name] = numbers % extent
            numbers = numbers // extent
    variables = {var: ids[name] for var, name in grid.variables.items()}
    follower = _Follower(Values(sizes, variables), threads.reshape(1, -1) < grid.threads)
    follower.follow(grid.body)
    yield from follower.found


@dataclass
class _Follower:
    """Goes through the code of a launch."""

    known: Values
    mask: Array
    loops: int = 0
    lengths: list[int] = field(default_factory=list)
    aliases: dict[Any, Any] = field(default_factory=dict)
    found: list[Access] = field(default_factory=list)
    read: list[TensorLoad] = field(default_factory=list)

    def follow(self, stmt: Any) -> None:
        """A statement, and all that is in it."""
        if isinstance(stmt, tirx.SeqStmt):
            for part in stmt.seq:
                self.follow(part)
        elif isinstance(stmt, tirx.BufferStore):
            self._store(stmt)
        elif isinstance(stmt, tirx.For):
            self._loop(stmt)
        elif isinstance(stmt, tirx.IfThenElse):
            self._branch(stmt)
        elif isinstance(stmt, tirx.Evaluate):
            self._evaluate(stmt.value)
        elif isinstance(stmt, tirx.DeclBuffer):
            data = stmt.data if hasattr(stmt, "data") else None
            self.aliases[stmt.buffer] = data.args[0] if isinstance(data, Call) else data
            for part in _parts(stmt):
                self.follow(part)
        elif isinstance(stmt, (tirx.Bind, tirx.LetStmt)):
            self.loads(stmt.value)
            self.known.variables[stmt.var] = self.known.value(stmt.value)
            for part in _parts(stmt):
                self.follow(part)
        else:
            for part in _parts(stmt):
                self.follow(part)

    def _evaluate(self, value: Any) -> None:
        if isinstance(value, Call) and name_of(value) == "call_extern" and str(value.args[0].value) == _COPY:
            _, _, source, index, nbytes, exists = value.args
            buffer = source.args[0] if isinstance(source, Call) else source
            self._access(buffer, False, self.known.value(index), self.known.condition(exists), int(nbytes.value))
        else:
            self.loads(value)

    def _store(self, stmt: Any) -> None:
        self.read.clear()
        for index in stmt.indices:
            self.loads(index)
        self.loads(stmt.value)
        if in_memory(stmt.buffer):
            first, lanes, stride = self._place(stmt.indices)
            self._lanes(stmt.buffer, True, first, lanes, stride)
        elif len(stmt.indices) == 1 and isinstance(stmt.indices[0], tirx.IntImm) and "int" in str(stmt.buffer.dtype):
            own = any(load.source.same_as(stmt.buffer) for load in loads_in(stmt.value))
            key = (stmt.buffer, int(stmt.indices[0].value))
            self.known.registers[key] = None if own else self.known.value(stmt.value)

    def _loop(self, stmt: Any) -> None:
        extent, start = self.known.value(stmt.extent), self.known.value(stmt.min)
        if extent is None:
            raise NotImplementedError("a loop whose length depends on data")
        most = int(np.max(extent))
        if most <= 0:
            return
        shape = (most,) + (1,) * (self.loops + 2)
        counter = np.arange(most, dtype=np.int64).reshape(shape)
        outer, self.known.variables[stmt.loop_var] = self.mask, counter + (0 if start is None else start)
        self.loops += 1
        self.lengths.append(most)
        if isinstance(extent, np.ndarray) and extent.size > 1:
            self.mask = self.mask & (counter < extent)
        self.follow(stmt.body)
        self.loops -= 1
        self.lengths.pop()
        self.mask = outer
        for key, value in list(self.known.registers.items()):  # over an axis that is no more
            if isinstance(value, np.ndarray) and value.ndim > self.loops + 2:
                del self.known.registers[key]

    def _branch(self, stmt: Any) -> None:
        self.loads(stmt.condition)
        outer, met = self.mask, self.known.condition(stmt.condition)
        self.mask = outer & met
        self.follow(stmt.then_case)
        if stmt.else_case is not None:
            self.mask = outer & ~met
            self.follow(stmt.else_case)
        self.mask = outer

    def loads(self, value: Any) -> None:
        """All loads of the device's memory in an expression."""
        if isinstance(value, TensorLoad):
            for index in value.indices:
                self.loads(index)
            if in_memory(value.source) and not any(tvm_ffi.structural_equal(value, each) for each in self.read):
                self.read.append(value)  # what a statement reads twice, the compiler reads once
                first, lanes, stride = self._place(value.indices)
                self._lanes(value.source, False, first, lanes, stride)
        elif isinstance(value, Call) and name_of(value) == "if_then_else":
            condition, then, otherwise = value.args
            self.loads(condition)
            outer, met = self.mask, self.known.condition(condition)
            self.mask = outer & met
            self.loads(then)
            self.mask = outer & ~met
            self.loads(otherwise)
            self.mask = outer
        elif isinstance(value, Call) and name_of(value) == "address_of":
            return
        else:
            for part in operands(value):
                self.loads(part)

    def _place(self, indices: Sequence[Any]) -> tuple[Number, int, Number]:
        """The first element, how many there are, and how far apart."""
        if len(indices) != 1:
            raise NotImplementedError("a buffer that is not flat")
        (index,) = indices
        if isinstance(index, tirx.Ramp):
            return self.known.value(index.base), int(index.lanes), self.known.value(index.stride)
        return self.known.value(index), 1, 1

    def _lanes(self, buffer: Any, store: bool, first: Number, lanes: int, stride: Number) -> None:
        size = element_bytes(str(buffer.dtype).split("x")[0])
        inner = int(str(buffer.dtype).split("x")[1]) if "x" in str(buffer.dtype) else 1
        if stride == 1 or first is None:
            self._access(buffer, store, first, np.array(True), lanes * size * inner)
            return
        for lane in range(lanes):
            self._access(buffer, store, first + lane * stride, np.array(True), size * inner)

    def _access(self, buffer: Any, store: bool, first: Number, exists: Array, nbytes: int) -> None:
        mask = self.mask & exists
        place = None if first is None else np.atleast_1d(np.asarray(first))
        shapes = [mask.shape] if place is None else [mask.shape, place.shape]
        shape = np.broadcast_shapes(*shapes, (1, self.mask.shape[-1]))
        times = 1.0
        for axis, length in enumerate(reversed(self.lengths)):  # loops lie in front, the innermost first
            position = axis - (self.loops + 2)
            if len(shape) < -position or shape[position] == 1:
                times *= length
        root = buffer
        while root in self.aliases:
            root = self.aliases[root]
        size = element_bytes(str(buffer.dtype).split("x")[0])
        self.found.append(Access(root, store, place, np.broadcast_to(mask, shape), times, nbytes, size))
