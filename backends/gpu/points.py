"""One thread for each point of the output: element-wise chains, and reductions that each thread does alone.

Neighbouring threads compute neighbouring elements of the last axis, so that their accesses share cache lines. Where
nothing is reduced and the last axis divides, a thread has several neighbours, and moves them by vector accesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.ir import Call

from backends.gpu.launch import Ids, Launch
from backends.gpu.strides import coordinates, stride_of
from backends.relax.kernel import Axis, Stage
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
    vectorized,
)
from optimizer.gpus import Gpu

__all__ = ["element_bytes", "points", "reduced"]

_VECTOR_BYTES = 16
"""The widest access of a thread."""
_PLAIN_CALLS = frozenset({"exp", "sqrt", "rsqrt", "tanh", "erf", "log"})
_BLOCK = 256


def points(stages: Sequence[Stage], outputs: Sequence[Var], gpu: Gpu) -> Launch:
    """A thread for each point, in which every stage is computed.

    Args:
        stages: all over the same axes, each read by the others at the same point only.
        outputs: the buffers that are written to memory; the others stay in the thread.
        gpu: the target.
    """
    extents = [axis.extent for axis in stages[0].spatial]
    width = _width(stages, extents)
    if width > 1:
        extents = [*extents[:-1], simplify(tirx.floordiv(extents[-1], width))]
    total = product(extents)
    count = known(total)
    threads = min(_BLOCK, gpu.threads)
    if count is not None:
        threads = min(threads, max(gpu.lanes, 1 << (max(count, 1) - 1).bit_length()))
    written = [buffer for buffer in outputs if any(s.buffer.same_as(buffer) for s in stages)]

    def body(block: Ids, thread: Ids) -> Stmt:
        flat = block[0] * threads + thread[0]
        place = coordinates(flat, extents)
        work = _computed(stages, place, width, written)
        return work if count is not None and count % threads == 0 else IfThenElse(flat < total, work, None)

    blocks = simplify(tirx.floordiv(total + (threads - 1), i64(threads)))
    return Launch(stages[-1].name, (blocks, i64(1), i64(1)), (threads, 1, 1), body)


def reduced(
    stage: Stage, point: dict[Var, Expr], redirect: Callable[[TensorLoad], Expr | None], total: Var
) -> list[Stmt]:
    """One thread computes one element of a reduction, in the one-element buffer `total`."""

    def load(node: TensorLoad) -> Expr | None:
        return BufferLoad(total, [i64(0)]) if node.source.same_as(stage.buffer) else redirect(node)

    def accumulate(fixed: dict[Var, Expr]) -> Stmt:
        return BufferStore(total, substitute(stage.value, {**point, **fixed}, load), [i64(0)])

    return [BufferStore(total, stage.init, [i64(0)]), loops(stage.reduction, {}, accumulate)]


def loops(axes: Sequence[Axis], fixed: dict[Var, Expr], body: Callable[[dict[Var, Expr]], Stmt]) -> Stmt:
    """Nested loops over the axes."""
    if not axes:
        return body(fixed)
    inner = axes[0]
    return sequence([loop(inner.extent, lambda i: loops(axes[1:], {**fixed, inner.var: i}, body), name=inner.var.name)])


def _computed(stages: Sequence[Stage], place: list[Expr], width: int, outputs: Sequence[Var]) -> Stmt:
    if len(stages) == 1 and not stages[0].reduction:  # nothing to keep
        return sequence([vectorized(width, lambda lane: _stored(stages[0], _at(place, width, lane), None, {}))])
    own = {s.buffer: _register(s, width) for s in stages}
    statements: list[Stmt | None] = []
    for stage in stages:
        target = own[stage.buffer]
        if stage.reduction:
            point = _point(stage, place)
            statements += reduced(stage, point, _from(own, i64(0)), target)
            if any(stage.buffer.same_as(o) for o in outputs):
                indices = [point[a.var] for a in stage.spatial]
                statements.append(BufferStore(stage.buffer, BufferLoad(target, [i64(0)]), indices))
            continue
        store = any(stage.buffer.same_as(o) for o in outputs)

        def lane_of(lane: Expr, stage: Stage = stage, target: Var = target) -> Stmt:
            return _stored(stage, _at(place, width, lane), target, own, lane)

        statements.append(vectorized(width, lane_of))
        if store:

            def kept(lane: Expr, stage: Stage = stage, target: Var = target) -> Stmt:
                point = _point(stage, _at(place, width, lane))
                return BufferStore(stage.buffer, BufferLoad(target, [lane]), [point[a.var] for a in stage.spatial])

            statements.append(vectorized(width, kept))
    return allocate(list(own.values()), sequence(statements))


def _at(place: list[Expr], width: int, lane: Expr) -> list[Expr]:
    return place if width == 1 else [*place[:-1], place[-1] * width + lane]


def _point(stage: Stage, place: Sequence[Expr]) -> dict[Var, Expr]:
    return dict(zip((a.var for a in stage.spatial), place, strict=True))


def _stored(stage: Stage, place: list[Expr], target: Var | None, own: dict[Var, Var], lane: Expr | None = None) -> Stmt:
    """Store one element, to memory or to a register."""
    at = i64(0) if lane is None else lane
    value = substitute(stage.value, _point(stage, place), _from(own, at))
    if target is None:
        return BufferStore(stage.buffer, value, place)
    return BufferStore(target, value, [at])


def _from(own: dict[Var, Var], at: Expr) -> Callable[[TensorLoad], Expr | None]:
    """Loads of what the thread has computed go to its registers."""

    def load(node: TensorLoad) -> Expr | None:
        register = own.get(node.source)
        return None if register is None else BufferLoad(register, [at])

    return load


def _register(stage: Stage, width: int) -> Var:
    return tirx.decl_buffer([i64(width)], str(stage.buffer.dtype), f"{stage.buffer.name}_own", scope="local")


def _width(stages: Sequence[Stage], extents: Sequence[Expr]) -> int:
    """Neighbours along the last axis that a thread computes together."""
    last = known(extents[-1]) if extents else None
    if last is None or any(s.reduction for s in stages) or not all(_is_plain(s.value) for s in stages):
        return 1
    loads = [(ld, s.spatial[-1].var) for s in stages for ld in loads_of(s.value)]
    if any(stride_of(load, var) not in (0, 1) for load, var in loads):
        return 1
    sizes = [element_bytes(str(s.buffer.dtype)) for s in stages] + [
        element_bytes(str(ld.source.dtype)) for ld, _ in loads
    ]
    width = _VECTOR_BYTES // max(sizes)
    while width > 1 and last % width:
        width //= 2
    return width


def element_bytes(dtype: str) -> int:
    """Bytes of an element."""
    return 1 if dtype == "bool" else max(1, int("".join(c for c in dtype if c.isdigit()) or "8") // 8)


def _is_plain(value: Expr) -> bool:
    """Whether a vector of such values is one operation for each: arithmetic of float32."""
    if str(value.expr_ty()) != "float32":
        return False
    if isinstance(value, Call):
        name = str(getattr(value.op, "name", "")).rpartition(".")[2]
        return name in _PLAIN_CALLS and all(_is_plain(a) for a in value.args)
    if isinstance(value, (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Max, tirx.Min)):
        return _is_plain(value.a) and _is_plain(value.b)
    return isinstance(value, (TensorLoad, tirx.FloatImm))
