"""The kernel of a join of which some pieces are already where they belong: it copies the others."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import tirx

from backends.relax.loops import Expr, Stmt, i64, known, over_vectors, parallel, sequence, unflatten
from backends.relax.packing import element_type

__all__ = ["Range", "copying"]

Range = tuple[int, int, int, int]
"""The parameter that is copied from, where from, where to, and how much, in elements."""

_VECTOR = 64
"""Bytes."""


def copying(kernel: tirx.PrimFunc, ranges: Sequence[Range], attribute: str) -> tirx.PrimFunc:
    """A kernel with the parameters of a join that copies only these ranges.

    Args:
        kernel: the join, along the outermost axis that is longer than 1; the last parameter is the whole.
        ranges: whole rows.
        attribute: of the join, that this kernel does not have.
    """
    body = sequence([_rows(kernel.params[each[0]], kernel.params[-1], *each[1:]) for each in ranges])
    changed = tirx.PrimFunc(kernel.params, body, kernel.ret_type)
    for key, value in (kernel.attrs or {}).items():
        if key != attribute:
            changed = changed.with_attr(key, value)
    return changed


def _rows(source: tirx.Var, whole: tirx.Var, start: int, to: int, count: int) -> Stmt | None:
    sizes = [known(size) or 0 for size in whole.shape]
    outer = next(place for place, size in enumerate(sizes) if size != 1)
    inner = sizes[outer + 1 :]
    row = prod(inner)
    extents = [count // row, *inner]
    lanes = _VECTOR // element_type(str(whole.dtype)).itemsize

    def at(rows: Sequence[Expr], begin: Expr, width: int, offset: int) -> list[Expr]:
        coordinates = [*[i64(0)] * outer, *rows, begin]
        coordinates[outer] = coordinates[outer] + offset // row
        if width > 1:
            coordinates[-1] = tirx.Ramp(coordinates[-1], i64(1), width)
        return coordinates

    def vectors(rows: Sequence[Expr]) -> Stmt:
        def vector(begin: Expr, width: int) -> Stmt:
            load = tirx.BufferLoad(source, at(rows, begin, width, start))
            return tirx.BufferStore(whole, load, at(rows, begin, width, to))

        return over_vectors(extents[-1], lanes, vector)

    return parallel(prod(extents[:-1]), lambda task: vectors(unflatten(task, extents[:-1])))
