"""One block for each row, or for a few: normalisations, softmax, and reductions of long rows.

The threads of a row compute its elements side by side; what one stage makes for the next lies in shared memory. A
reduction over a row is summed by each thread over every so-many-th element, and then by halves, in a tree. What would
be too long for shared memory, or has a symbolic length, is computed again where it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from tvm import tirx

from backends.gpu.launch import Ids, Launch, barrier
from backends.gpu.points import element_bytes, reduced
from backends.gpu.strides import coordinates
from backends.relax.kernel import Stage
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    IfThenElse,
    Stmt,
    TensorLoad,
    Var,
    allocate,
    i64,
    known,
    loads_of,
    loop,
    product,
    sequence,
    simplify,
    substitute,
)
from backends.relax.reduction import Combine, combiner
from optimizer.gpus import Gpu

__all__ = ["combine_of", "rows"]


_LONGEST = 256
"""Threads that share a row, at most."""
_BLOCK = 128
"""Threads of a block that has several short rows."""
_MOST_TREES = 8
"""Results of a row, up to which each is reduced by all its threads; of more, each thread computes its own."""


def combine_of(stage: Stage) -> Combine | None:
    """How partial results of a reduction are combined; see `backends.relax.reduction.combiner`."""
    return combiner(stage, stage.value, _extreme)


def _extreme(larger: bool) -> Combine:
    test = tirx.GT if larger else tirx.LT
    return lambda a, b: tirx.Select(tirx.Or(test(a, b), tirx.isnan(a)), a, b)


def rows(stages: Sequence[Stage], shared: int, outputs: Sequence[Var], gpu: Gpu) -> Launch | None:
    """A few threads or a whole block for each row.

    Args:
        stages: have the first `shared` axes in common, where each is read by the others at the same place.
        shared: how many axes.
        outputs: the buffers that are written to memory.
        gpu: the target.

    Returns:
        `None` if what the threads of a row share does not fit into shared memory.
    """
    extents = [axis.extent for axis in stages[0].spatial[:shared]]
    count = product(extents)
    threads = _threads(stages, shared, gpu)
    together = max(1, min(_BLOCK, gpu.threads) // threads)
    if (size := known(count)) is not None:
        together = max(1, min(together, 1 << (max(size, 1) - 1).bit_length()))
    stages = _computed_again(stages, shared, outputs, together, gpu.shared_bytes // 2)
    kept = {
        s.buffer: _shared([together, product([a.extent for a in s.spatial[shared:]])], s)
        for s in stages[:-1]
        if any(_reads(other, s.buffer) for other in stages if other is not s)
    }
    lengths = [known(buffer.shape[1]) for buffer in kept.values()]
    if any(length is None for length in lengths):
        return None
    partial = {
        str(s.buffer.dtype): tirx.decl_buffer(
            [i64(together), i64(threads)], str(s.buffer.dtype), "partial", scope="shared"
        )
        for s in stages
        if s.reduction and _in_tree(s, shared)
    }
    buffers = [*kept.values(), *partial.values()]
    if sum(_bytes(buffer) for buffer in buffers) > gpu.shared_bytes:
        return None
    row = _Row(stages, shared, outputs, kept, partial, threads)

    def body(block: Ids, thread: Ids) -> Stmt:
        index = block[0] * together + thread[1]
        exact = size is not None and size % together == 0
        inside = tirx.Min(index, count - 1)  # a thread without a row helps with the last one: all must meet at barriers
        place = coordinates(index if exact else inside, extents)
        return allocate(buffers, row.computed(place, thread[0], thread[1], None if exact else index < count))

    blocks = simplify(tirx.floordiv(count + (together - 1), i64(together)))
    return Launch(stages[-1].name, (blocks, i64(1), i64(1)), (threads, together, 1), body)


class _Row:
    """What the threads of a row do, stage by stage."""

    def __init__(
        self,
        stages: Sequence[Stage],
        shared: int,
        outputs: Sequence[Var],
        kept: dict[Var, Var],
        partial: dict[str, Var],
        threads: int,
    ) -> None:
        self.stages = stages
        self.shared = shared
        self.outputs = outputs
        self.kept = kept
        self.partial = partial
        self.threads = threads

    def computed(self, place: list[Expr], thread: Expr, row: Expr, exists: Expr | None) -> Stmt:
        """All stages of the row at that place; `exists` says whether there is such a row."""
        statements: list[Stmt] = []
        for number, stage in enumerate(self.stages):
            store = self._store(stage, place, row, exists)
            if stage.reduction and _in_tree(stage, self.shared):
                statements.append(self._tree(stage, place, thread, row, store))
                continue
            statements.append(self._side_by_side(stage, place, thread, row, store))
            if number + 1 < len(self.stages) and stage.buffer in self.kept:
                statements.append(barrier())
        return sequence(statements)

    def _store(
        self, stage: Stage, place: list[Expr], row: Expr, exists: Expr | None
    ) -> Callable[[list[Expr], Expr], Stmt]:
        """Writes an element of the row to where it is read: shared memory, the device's, or both."""
        inner = [a.extent for a in stage.spatial[self.shared :]]
        written = any(stage.buffer.same_as(o) for o in self.outputs)

        def store(indices: list[Expr], value: Expr) -> Stmt:
            parts: list[Stmt] = []
            if stage.buffer in self.kept:
                parts.append(BufferStore(self.kept[stage.buffer], value, [row, _flat(indices, inner)]))
                value = BufferLoad(self.kept[stage.buffer], [row, _flat(indices, inner)])
            if written:
                out = BufferStore(stage.buffer, value, [*place, *indices])
                parts.append(out if exists is None else IfThenElse(exists, out, None))
            return sequence(parts)

        return store

    def _redirect(self, row: Expr) -> Callable[[TensorLoad], Expr | None]:
        extents = {s.buffer: [a.extent for a in s.spatial[self.shared :]] for s in self.stages}

        def load(node: TensorLoad) -> Expr | None:
            target = self.kept.get(node.source)
            if target is None:
                return None
            indices = list(node.indices[self.shared :])
            return BufferLoad(target, [row, _flat(indices, extents[node.source])])

        return load

    def _side_by_side(
        self, stage: Stage, place: list[Expr], thread: Expr, row: Expr, store: Callable[[list[Expr], Expr], Stmt]
    ) -> Stmt:
        """Each thread computes every so-many-th element."""
        inner = stage.spatial[self.shared :]
        extents = [a.extent for a in inner]
        length = product(extents)

        def element(index: Expr) -> Stmt:
            indices = coordinates(index, extents)
            point = _point(stage, [*place, *indices])
            if not stage.reduction:
                return store(indices, substitute(stage.value, point, self._redirect(row)))
            total = tirx.decl_buffer([i64(1)], str(stage.buffer.dtype), "total", scope="local")
            own = reduced(stage, point, self._redirect(row), total)
            return allocate([total], sequence([*own, store(indices, BufferLoad(total, [i64(0)]))]))

        return self._strided(length, thread, element)

    def _strided(self, length: Expr, thread: Expr, element: Callable[[Expr], Stmt]) -> Stmt:
        """The body for the thread's share of [0, length)."""
        size = known(length)
        if size == 0:
            return sequence([])
        if size is not None and size <= self.threads:
            work = element(thread)
            return work if size == self.threads else IfThenElse(thread < size, work, None)
        steps = simplify(tirx.floordiv(length + (self.threads - 1), i64(self.threads)))

        def step(number: Expr) -> Stmt:
            index = number * self.threads + thread
            work = element(index)
            return work if size is not None and size % self.threads == 0 else IfThenElse(index < length, work, None)

        return sequence([loop(steps, step, name="step")])

    def _tree(
        self, stage: Stage, place: list[Expr], thread: Expr, row: Expr, store: Callable[[list[Expr], Expr], Stmt]
    ) -> Stmt:
        """All threads of the row compute one element after the other."""
        combine = combine_of(stage)
        assert combine is not None
        extents = [a.extent for a in stage.spatial[self.shared :]]
        partial = self.partial[str(stage.buffer.dtype)]
        own = [row, thread]

        def element(index: Expr) -> Stmt:
            indices = coordinates(index, extents)
            point = _point(stage, [*place, *indices])
            total = tirx.decl_buffer([i64(1)], str(stage.buffer.dtype), "total", scope="local")
            redirect = self._redirect(row)

            def load(node: TensorLoad) -> Expr | None:
                return BufferLoad(total, [i64(0)]) if node.source.same_as(stage.buffer) else redirect(node)

            def step(position: Expr) -> Stmt:
                fixed = coordinates(position, [a.extent for a in stage.reduction])
                values = {**point, **dict(zip((a.var for a in stage.reduction), fixed, strict=True))}
                return BufferStore(total, substitute(stage.value, values, load), [i64(0)])

            summed = [
                BufferStore(total, stage.init, [i64(0)]),
                self._strided(product([a.extent for a in stage.reduction]), thread, step),
                BufferStore(partial, BufferLoad(total, [i64(0)]), own),
            ]
            statements: list[Stmt] = [allocate([total], sequence(summed)), barrier()]
            half = self.threads // 2
            while half:
                other = BufferLoad(partial, [row, thread + half])
                both = BufferStore(partial, combine(BufferLoad(partial, own), other), own)
                statements += [IfThenElse(thread < half, both, None), barrier()]
                half //= 2
            first = BufferLoad(partial, [row, i64(0)])
            statements += [IfThenElse(thread < 1, store(indices, first), None), barrier()]
            return sequence(statements)

        return sequence([loop(product(extents), element, name="result")])


def _in_tree(stage: Stage, shared: int) -> bool:
    results = known(product([a.extent for a in stage.spatial[shared:]]))
    return combine_of(stage) is not None and results is not None and results <= _MOST_TREES


def _threads(stages: Sequence[Stage], shared: int, gpu: Gpu) -> int:
    """A power of two, as many as the longest stage has use for."""
    longest = 1
    for stage in stages:
        axes = stage.reduction if stage.reduction and _in_tree(stage, shared) else stage.spatial[shared:]
        size = known(product([a.extent for a in axes])) if axes else 1
        longest = max(longest, _LONGEST if size is None else size)
    return min(_LONGEST, gpu.threads, 1 << (longest - 1).bit_length())


def _computed_again(
    stages: Sequence[Stage], shared: int, outputs: Sequence[Var], together: int, room: int
) -> list[Stage]:
    """Without the element-wise stages that are too long to be kept, the longest first."""
    result = list(stages)
    while True:
        sizes = {
            s.buffer: _length(s, shared) * together * element_bytes(str(s.buffer.dtype))
            for s in result
            if any(_reads(other, s.buffer) for other in result if other is not s)
        }
        candidates = [s for s in result if s.buffer in sizes and not s.reduction]
        if not candidates or sum(sizes.values()) <= room:
            return result
        longest = max(candidates, key=lambda s: sizes[s.buffer])
        result = [_inlined(s, longest) for s in result if s is not longest or _is_output(s, outputs)]


_ENDLESS = 1 << 40


def _length(stage: Stage, shared: int) -> int:
    size = known(product([a.extent for a in stage.spatial[shared:]]))
    return _ENDLESS if size is None else size


def _inlined(reader: Stage, producer: Stage) -> Stage:
    def load(node: TensorLoad) -> Expr | None:
        if not node.source.same_as(producer.buffer):
            return None
        return substitute(producer.value, {a.var: i64(i) for a, i in zip(producer.spatial, node.indices, strict=True)})

    return reader if reader is producer else replace(reader, value=substitute(reader.value, {}, load))


def _is_output(stage: Stage, outputs: Sequence[Var]) -> bool:
    return any(stage.buffer.same_as(o) for o in outputs)


def _reads(stage: Stage, buffer: Var) -> bool:
    return any(ld.source.same_as(buffer) for ld in loads_of(stage.value))


def _point(stage: Stage, place: Sequence[Expr]) -> dict[Var, Expr]:
    return dict(zip((a.var for a in stage.spatial), place, strict=True))


def _flat(indices: Sequence[Expr], extents: Sequence[Expr]) -> Expr:
    result: Expr = i64(0)
    for index, extent in zip(indices, extents, strict=True):
        result = result * extent + index
    return simplify(result)


def _shared(shape: Sequence[int | Expr], stage: Stage) -> Var:
    sizes = [i64(s) for s in shape]
    return tirx.decl_buffer(sizes, str(stage.buffer.dtype), f"{stage.buffer.name}_row", scope="shared")


def _bytes(buffer: Var) -> int:
    return (known(product(list(buffer.shape))) or 0) * element_bytes(str(buffer.dtype))
