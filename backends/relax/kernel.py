"""A fused kernel, taken apart: the form in which schedule rules see what TVM's fusion leaves.

`FuseTIR` gives one function per kernel: a sequence of blocks, each a computation of one buffer over spatial and
reduction axes. `decode`
turns that into `Stage`s; element-wise producers are inlined into their consumers, so that what is left is what
deserves a loop nest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.s_tir import SBlock, SBlockRealize

from backends.relax.loops import BufferStore, Expr, Stmt, TensorLoad, Var, i64, known, loads_of, substitute

_EXPENSIVE = {"prim.exp", "prim.tanh", "prim.erf", "prim.sigmoid", "prim.log", "prim.pow", "prim.sin", "prim.cos"}
_HALF = ("float16", "bfloat16")


@dataclass(frozen=True)
class Axis:
    """One axis of a stage."""

    var: Var
    extent: Expr
    reduce: bool


@dataclass(frozen=True)
class Stage:
    """The computation of one buffer: for all axes, `buffer[spatial axes] = value`.

    A reduction's `value` reads `buffer` itself.

    Attributes:
        name: the block's name.
        axes: spatial axes in the order of the buffer's, and reduction axes.
        init: the first value of a reduction.
        annotations: what the emitter said of it; `tersor.kernel` names a heavy operator.
    """

    name: str
    axes: tuple[Axis, ...]
    buffer: Var
    init: Expr | None
    value: Expr
    annotations: dict[str, object] = field(default_factory=dict)

    @property
    def spatial(self) -> list[Axis]:
        """The axes of the buffer, in order."""
        return [a for a in self.axes if not a.reduce]

    @property
    def reduction(self) -> list[Axis]:
        """The reduction axes."""
        return [a for a in self.axes if a.reduce]

    @property
    def kind(self) -> str:
        """The heavy operator that this is, or ""."""
        return str(self.annotations.get("tersor.kernel", ""))

    def operand(self, rank: int) -> Var:
        """The first buffer with so many axes that the value reads, besides the stage's own."""
        return next(
            load.source
            for load in loads_of(self.value)
            if len(load.indices) == rank and not load.source.same_as(self.buffer)
        )


@dataclass(frozen=True)
class Kernel:
    """A function's parameters and its stages, in order."""

    function: tirx.PrimFunc
    stages: tuple[Stage, ...]

    def is_output(self, buffer: Var) -> bool:
        """Whether the buffer is a parameter of the function."""
        return any(buffer.same_as(p) for p in self.function.params)


def decode(function: tirx.PrimFunc) -> Kernel | None:
    """The stages of a function; `None` if it is not a sequence of simple blocks."""
    if not isinstance(function.body, SBlockRealize):
        return None
    body = function.body.block.body
    stages = [_stage(nest) for nest in (body if isinstance(body, tirx.SeqStmt) else [body])]
    if any(s is None for s in stages):
        return None
    return Kernel(function, tuple(s for s in stages if s is not None))


def _stage(nest: Stmt) -> Stage | None:
    loops: dict[Var, Expr] = {}
    while isinstance(nest, tirx.For):
        if known(nest.min) != 0:
            return None
        loops[nest.loop_var] = nest.extent
        nest = nest.body
    if not isinstance(nest, SBlockRealize) or known(nest.predicate) not in (None, 1):
        return None
    block: SBlock = nest.block
    if not isinstance(block.body, BufferStore) or (block.init is not None and not isinstance(block.init, BufferStore)):
        return None
    axes = tuple(Axis(iv.var, iv.dom.extent, int(iv.iter_type) == tirx.IterVar.CommReduce) for iv in block.iter_vars)
    store = block.body
    if not store.indices:  # one number: TVM gives its block an axis of one element, which nothing reads
        axes = tuple(a for a in axes if a.reduce or known(a.extent) != 1)
    spatial = [a for a in axes if not a.reduce]
    if len(store.indices) != len(spatial):
        return None
    for index, axis in zip(store.indices, spatial, strict=True):
        if not (index.same_as(axis.var) or (known(index) == 0 and known(axis.extent) == 1)):
            return None
    init = None if block.init is None else block.init.value
    return Stage(block.name_hint, axes, store.buffer, init, store.value, dict(block.annotations))


def inline(kernel: Kernel) -> Kernel:
    """Inline element-wise stages into their consumers, except where that would repeat costly work.

    What an operation on float16 or bfloat16 gives its reader in the same kernel is not rounded on the way. What a
    conversion gives, is: it is there to round.
    """
    stages = list(kernel.stages)
    halves = {s.buffer for s in stages if _computes_in_float32(s.value)}
    position = 0
    while position < len(stages):
        stage = stages[position]
        readers = [s for s in stages if s is not stage and _reads(s, stage.buffer)]
        if _inlinable(kernel, stage, readers):
            exact = stage.buffer in halves
            stages = [_inlined(s, stage, exact) if s in readers else s for s in stages if s is not stage]
            position = 0
        else:
            position += 1
    return replace(kernel, stages=tuple(stages))


def _inlinable(kernel: Kernel, stage: Stage, readers: Sequence[Stage]) -> bool:
    if stage.reduction or stage.kind or kernel.is_output(stage.buffer) or not readers:
        return False
    if any(r.kind and r.kind != "reduce" for r in readers):
        return False
    reads = sum(1 for r in readers for ld in loads_of(r.value) if ld.source.same_as(stage.buffer))
    repeated = reads > 1 or any(len(r.spatial) + len(r.reduction) > len(stage.spatial) for r in readers)
    return not (repeated and _is_expensive(stage.value))


def _is_expensive(expr: Expr) -> bool:
    names: list[str] = []
    tvm_ffi.structural_walk(expr, (Call, lambda c: names.append(str(getattr(c.op, "name", "")))))
    return any(n.rpartition(".")[2] in {e.rpartition(".")[2] for e in _EXPENSIVE} for n in names)


def _reads(stage: Stage, buffer: Var) -> bool:
    return any(ld.source.same_as(buffer) for ld in loads_of(stage.value))


def _computes_in_float32(value: Expr) -> bool:
    """Whether it widens operands of half precision and rounds the result."""
    if not _is_cast(value, "float32", to=_HALF):
        return False
    found: list[tirx.Cast] = []
    tvm_ffi.structural_walk(value, (tirx.Cast, found.append))
    return any(_is_cast(c, *_HALF, to=("float32",)) for c in found)


def _is_cast(value: Expr, *sources: str, to: tuple[str, ...]) -> bool:
    return isinstance(value, tirx.Cast) and str(value.value.expr_ty()) in sources and str(value.expr_ty()) in to


def _inlined(reader: Stage, producer: Stage, exact: bool) -> Stage:
    def load(node: TensorLoad) -> Expr | None:
        if not node.source.same_as(producer.buffer):
            return None
        return substitute(producer.value, {a.var: i64(i) for a, i in zip(producer.spatial, node.indices, strict=True)})

    def widened(node: tirx.Cast) -> Expr:
        value = load(node.value) if isinstance(node.value, TensorLoad) else None
        return node if value is None or not _is_cast(node, *_HALF, to=("float32",)) else value.value

    value = tvm_ffi.structural_map(reader.value, (tirx.Cast, widened)) if exact else reader.value
    return replace(reader, value=substitute(value, {}, load))
