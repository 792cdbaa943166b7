"""The loop nest of one stage, vectorised along the last spatial axis or along a reduction."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx

from backends.cpu.function_chains import stored
from backends.cpu.pieces import pieces
from backends.cpu.polynomials import let
from backends.relax.kernel import Axis, Stage
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    Stmt,
    TensorLoad,
    Var,
    allocate,
    i64,
    known,
    loads_of,
    local,
    loop,
    over_vectors,
    sequence,
    simplify,
    substitute,
    uses,
    vectorized,
)
from backends.relax.reduction import Combine, combiner
from optimizer.target import Cpu

_PARTIALS = 4
"""Vectors of partial results in a reduction, to hide the latency of an addition."""

Store = Callable[[list[Expr], Expr], Stmt]


def store_all(stage: Stage) -> Store:
    """Store to the stage's own buffer."""
    return lambda indices, value: BufferStore(stage.buffer, value, indices)


def stage_nest(stage: Stage, inner: list[Axis], point: dict[Var, Expr], cpu: Cpu, store: Store) -> Stmt:
    """Compute a stage over its `inner` spatial axes; the others are fixed by `point`."""
    along = along_reduction(stage)
    lanes = cpu.lanes

    def nest(axes: list[Axis], point: dict[Var, Expr]) -> Stmt:
        if axes and (len(axes) > 1 or along is not None):
            return sequence(
                [loop(axes[0].extent, lambda i: nest(axes[1:], {**point, axes[0].var: i}), name=axes[0].var.name)]
            )
        if not axes:
            return _point(stage, point, store, lanes, along)
        vector = axes[0]
        return sequence(
            [
                over_vectors(
                    length,
                    lanes,
                    lambda first, n, s=start, p=part: _vector(p, vector, s + first, n, point, store),  # type: ignore[misc]
                )
                for start, length, part in pieces(stage, vector)
            ]
        )

    return nest(inner, point)


def _vector(stage: Stage, axis: Axis, first: Expr, lanes: int, point: dict[Var, Expr], store: Store) -> Stmt:
    """`lanes` neighbouring elements along the last spatial axis."""

    def index(lane: Expr) -> dict[Var, Expr]:
        return {**point, axis.var: first + lane}

    def indices(lane: Expr) -> list[Expr]:
        values = index(lane)
        return [values[a.var] for a in stage.spatial]

    if not stage.reduction:
        return stored(
            lanes,
            lambda lane: substitute(stage.value, index(lane)),
            lambda lane, element: store(indices(lane), element),
        )
    partial = local([lanes], str(stage.buffer.dtype), "partial")
    value = stage.value

    def accumulate(fixed: dict[Var, Expr]) -> Stmt:
        def one(lane: Expr) -> Expr:
            own = lambda node: BufferLoad(partial, [lane]) if node.source.same_as(stage.buffer) else None  # noqa: E731
            return substitute(value, {**index(lane), **fixed}, own)

        return stored(lanes, one, lambda lane, element: BufferStore(partial, element, [lane]))

    body = sequence(
        [
            vectorized(lanes, lambda lane: BufferStore(partial, stage.init, [lane])),
            _loops(stage.reduction, {}, accumulate),
            vectorized(lanes, lambda lane: store(indices(lane), BufferLoad(partial, [lane]))),
        ]
    )
    return allocate([partial], body)


def _loops(axes: list[Axis], fixed: dict[Var, Expr], body: Callable[[dict[Var, Expr]], Stmt]) -> Stmt:
    if not axes:
        return body(fixed)
    return sequence(
        [loop(axes[0].extent, lambda i: _loops(axes[1:], {**fixed, axes[0].var: i}, body), name=axes[0].var.name)]
    )


def _point(stage: Stage, point: dict[Var, Expr], store: Store, lanes: int, along: Axis | None) -> Stmt:
    """One element: a value, or a reduction with vectors of partial results."""
    indices = [point[a.var] for a in stage.spatial]
    if not stage.reduction:
        return stored(1, lambda _: substitute(stage.value, point), lambda _, element: store(indices, element))
    value = stage.value
    combine = _combiner(stage, value)
    extent = None if along is None else known(along.extent)
    if along is None or combine is None or (extent is not None and extent < lanes):
        return _serial_reduction(stage, value, point, store)
    dtype = str(stage.buffer.dtype)
    width = lanes * (_PARTIALS if extent is None or extent >= 2 * lanes * _PARTIALS else 1)
    partial = local([width], dtype, "partial")
    others = [a for a in stage.reduction if a is not along]

    def step(fixed: dict[Var, Expr], first: Expr, offset: int, n: int) -> Stmt:
        def one(lane: Expr) -> Expr:
            place = [lane + offset]
            own = lambda node: BufferLoad(partial, place) if node.source.same_as(stage.buffer) else None  # noqa: E731
            return substitute(value, {**point, **fixed, along.var: first + lane}, own)

        return stored(n, one, lambda lane, element: BufferStore(partial, element, [lane + offset]))

    def row(fixed: dict[Var, Expr]) -> Stmt:
        blocks = tirx.floordiv(along.extent, width)
        done = blocks * width

        def block(b: Expr) -> Stmt:
            return sequence([step(fixed, b * width + o, o, lanes) for o in range(0, width, lanes)])

        rest = simplify(along.extent - done)
        vectors = tirx.floordiv(rest, lanes)
        return sequence(
            [
                loop(simplify(blocks), block, name="block"),
                loop(simplify(vectors), lambda v: step(fixed, done + v * lanes, 0, lanes), name="vector"),
                loop(
                    simplify(rest - vectors * lanes),
                    lambda r: step(fixed, done + vectors * lanes + r, 0, 1),
                    name="rest",
                ),
            ]
        )

    body = sequence(
        [
            *(
                vectorized(lanes, lambda lane, o=o: BufferStore(partial, stage.init, [lane + o]))  # type: ignore[misc]
                for o in range(0, width, lanes)
            ),
            _loops(others, {}, row),
            store(indices, _folded(partial, width, lanes, combine, keep_nan=isinstance(value, tirx.Select))),
        ]
    )
    return allocate([partial], body)


def _folded(
    partial: Var, width: int, lanes: int, combine: Callable[[Expr, Expr], Expr], *, keep_nan: bool = False
) -> Expr:
    """All partial results combined, in registers; `keep_nan`: NaN if one of them is, where `combine` drops it."""
    vectors = [BufferLoad(partial, [tirx.Ramp(i64(o), i64(1), lanes)]) for o in range(0, width, lanes)]
    result = _halved(vectors, lanes, combine)
    if not keep_nan:
        return result
    zero = tirx.Broadcast(tirx.const(0, str(partial.dtype)), lanes)
    flag = _halved([tirx.Select(tirx.isnan(v), v, zero) for v in vectors], lanes, tirx.Add)
    return let(flag, lambda f: tirx.Select(tirx.isnan(f), f, result))


def _halved(vectors: list[Expr], lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """The lanes of all vectors combined, by halves; each step is named, since combining may read it twice."""
    if len(vectors) > 1:
        first, second, *rest = vectors
        return let(combine(first, second), lambda v: _halved([*rest, v], lanes, combine))
    if lanes == 1:
        return vectors[0]
    middle = lanes // 2
    parts = [tirx.const(k, "int32") for k in range(lanes)]

    def halves(v: Expr) -> Expr:
        lower, upper = tirx.Shuffle([v], parts[:middle]), tirx.Shuffle([v], parts[middle:])
        return let(lower, lambda a: let(upper, lambda b: _halved([combine(a, b)], middle, combine)))

    return let(vectors[0], halves)


def _serial_reduction(stage: Stage, value: Expr, point: dict[Var, Expr], store: Store) -> Stmt:
    total = local([1], str(stage.buffer.dtype), "total")
    own = lambda node: BufferLoad(total, [i64(0)]) if node.source.same_as(stage.buffer) else None  # noqa: E731

    def accumulate(fixed: dict[Var, Expr]) -> Stmt:
        one = lambda _: substitute(value, {**point, **fixed}, own)  # noqa: E731
        return stored(1, one, lambda _, element: BufferStore(total, element, [i64(0)]))

    body = sequence(
        [
            BufferStore(total, stage.init, [i64(0)]),
            _loops(stage.reduction, {}, accumulate),
            store([point[a.var] for a in stage.spatial], BufferLoad(total, [i64(0)])),
        ]
    )
    return allocate([total], body)


def _combiner(stage: Stage, value: Expr) -> Combine | None:
    return combiner(stage, value, lambda larger: tirx.Max if larger else tirx.Min)


def along_reduction(stage: Stage) -> Axis | None:
    """The reduction axis that the loads follow contiguously, if the last spatial axis is not better."""
    if not stage.reduction or _combiner(stage, stage.value) is None:
        return None
    loads = [ld for ld in loads_of(stage.value) if not ld.source.same_as(stage.buffer)]
    last = stage.spatial[-1] if stage.spatial else None
    if last is not None and known(last.extent) != 1:
        strides = [stride_of(ld, last.var) for ld in loads]
        if 1 in strides and all(s in (0, 1) for s in strides):
            return None
    for axis in reversed(stage.reduction):
        strides = [stride_of(ld, axis.var) for ld in loads]
        if loads and all(s in (0, 1) for s in strides) and 1 in strides:
            return axis
    return None


def stride_of(load: TensorLoad, var: Var) -> int | None:
    """How far apart two neighbours along `var` lie, in elements; `None` if that is not a small constant."""
    if not any(uses(i, var) for i in load.indices):
        return 0
    if any(uses(i, var) for i in load.indices[:-1]):
        shape = list(load.source.shape)
        if any(known(d) != 1 for d in shape[len(shape) - 1 :]) or len(shape) < 2:
            return None
    step = simplify(substitute(load.indices[-1], {var: var + 1}) - load.indices[-1])
    return known(step)
