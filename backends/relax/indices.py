"""Indices that are computed at run time: checked once, before the kernels that read or write by them.

A small kernel goes over the indices and stops the run where one is out of range, as ONNX Runtime does; what follows
gets places that are counted from the front, and needs no check of its own. It costs less than the comparisons that
each reader would make to stay inside its tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.emitter import Emitter
from backends.relax.known import known
from backends.relax.procedure import demand, fetch, nest, procedure, sequence, store
from backends.relax.values import Refused, prim, static_int

_WORTH_A_THREAD = 1 << 15
"""Indices from which on they are checked in parallel."""


def checked_places(
    ctx: Emitter,
    indices: ir.Value | None,
    sizes: Sequence[tirx.Expr],
    *,
    from_end: bool = True,
    ignored: int | None = None,
) -> relax.Var:
    """The places that indices name, each from 0 to the size of its axis less 1; the run fails if one is out of range.

    Args:
        ctx: the emitter.
        indices: integers of any shape.
        sizes: of the one axis that all of them are for, or of the axes that the indices' last axis is for in turn.
        from_end: whether indices below zero count from the end; else they are out of range.
        ignored: an index that may be out of range; it gives some valid place.

    Raises:
        Refused: a constant is out of range.
    """
    source = ctx.x(indices)
    if ignored is None and _certain(ctx, indices, sizes):
        return source
    counts = [static_int(d) for d in ctx.shape(indices)]
    spread = all(c is not None for c in counts) and math.prod(c or 0 for c in counts) >= _WORTH_A_THREAD
    text = f"node {ctx.node_name!r}: an index is out of range of its axis"

    def build(at: te.Tensor, *extents: tirx.Expr) -> te.Tensor:
        check = _Check(tuple(at.shape), extents, text, from_end, ignored, spread)
        return procedure("check_indices", [at], [(at.shape, "int64")], check.body)[0]

    return ctx.te(build, source, *sizes, primfunc_name_hint="check_indices")


@dataclass(frozen=True)
class _Check:
    """The kernel that checks indices; they are gone over row by row, a row being the innermost axis of places.

    Attributes:
        shape: of the indices.
        extents: see `sizes` of `checked_places`.
        text: of the error.
        from_end, ignored: see `checked_places`.
        spread: whether the rows are spread over the threads; each then counts its errors for itself.
    """

    shape: tuple[tirx.Expr, ...]
    extents: tuple[tirx.Expr, ...]
    text: str
    from_end: bool
    ignored: int | None
    spread: bool

    def body(self, ins: list[tirx.Var], outs: list[tirx.Var]) -> tirx.Stmt:
        """Write the places, count the indices that are out of range, and stop if there are any."""
        axes = self.shape if len(self.extents) == 1 else self.shape[:-1]
        rows, inner = axes[:-1], axes[-1:]
        counted = list(rows) if self.spread and rows else [prim(1)]
        wrong = tirx.decl_buffer(counted, "int64", "wrong")

        def row(lead: list[tirx.Expr]) -> tirx.Stmt:
            count = lead if self.spread and rows else [prim(0)]
            return nest(inner, lambda last: self._indices([*lead, *last], ins[0], outs[0], wrong, count))

        def verdict(count: list[tirx.Expr]) -> tirx.Stmt:
            return demand(tirx.EQ(fetch(wrong, count), prim(0)), "IndexError", self.text)

        return sequence(
            tirx.AllocBuffer(wrong),
            nest(counted, lambda count: store(wrong, prim(0), count)),
            nest(rows, row, parallel=(0,) if self.spread else ()),
            nest(counted, verdict),
        )

    def _indices(
        self, at: list[tirx.Expr], source: tirx.Var, target: tirx.Var, wrong: tirx.Var, count: list[tirx.Expr]
    ) -> tirx.Stmt:
        """The index at a position, or the indices there that name one element together."""
        statements = []
        for k, extent in enumerate(self.extents):
            index = at if len(self.extents) == 1 else [*at, prim(k)]
            place = self._place(prim(fetch(source, index)), extent)
            outside = tirx.Cast("int64", tirx.any(place < 0, place >= extent))
            statements += [store(wrong, fetch(wrong, count) + outside, count), store(target, place, index)]
        return sequence(*statements)

    def _place(self, index: tirx.Expr, extent: tirx.Expr) -> tirx.Expr:
        if self.ignored is not None:
            index = tirx.Select(tirx.EQ(index, prim(self.ignored)), prim(0), index)
        return tirx.Select(index < 0, index + extent, index) if self.from_end else index


def fixed_indices(ctx: Emitter, indices: ir.Value | None) -> np.ndarray | None:
    """Indices that are known at compile time."""
    constant = ctx.constant(indices)
    if constant is not None:
        return constant.astype(np.int64)
    array = known(ctx, indices)
    numbers = None if array is None else [static_int(e) for e in array.reshape(-1)]
    if array is None or numbers is None or any(n is None for n in numbers):
        return None
    return np.array(numbers, np.int64).reshape(array.shape)


def demand_range(places: np.ndarray, size: int) -> None:
    """Refuse constants that are out of range.

    Raises:
        Refused: one is.
    """
    wrong = places[(places < -size) | (places >= size)]
    if wrong.size:
        raise Refused(f"index {wrong.flat[0]} of an axis of size {size}")


def _certain(ctx: Emitter, indices: ir.Value | None, sizes: Sequence[tirx.Expr]) -> bool:
    """Whether all indices are constants that are in range and count from the front."""
    places = fixed_indices(ctx, indices)
    extents = [static_int(size) for size in sizes]
    if places is None or any(extent is None for extent in extents):
        return False
    columns = [places] if len(sizes) == 1 else list(np.moveaxis(places, -1, 0))
    for column, extent in zip(columns, extents, strict=True):
        demand_range(column, extent or 0)
    return bool((places >= 0).all())
