"""Which kernels only copy: a Concat or a Slice along the outermost axis moves whole ranges of memory."""

from __future__ import annotations

import math

from tvm import tirx

from backends.cpu.pieces import pieces
from backends.relax.kernel import Axis, Kernel, Stage
from backends.relax.loops import Expr, TensorLoad, i64, known, simplify, substitute

__all__ = ["copies"]

Range = tuple[int, int, int, int]
"""The parameter that is copied from, where it begins there and in the result, and how long it is, in elements."""


def copies(kernel: Kernel) -> list[Range] | None:
    """The ranges of which the kernel's result is made up; `None` if it does anything else, or sizes are symbolic."""
    if len(kernel.stages) != 1 or kernel.stages[0].reduction:
        return None
    stage = kernel.stages[0]
    shape = [known(axis.extent) for axis in stage.spatial]
    sizes = [size for size in shape if size is not None]
    if len(sizes) != len(shape) or 0 in sizes:
        return None
    outer = _outermost(stage, sizes)
    if outer is None:
        return None
    ranges = [_range(kernel, part, outer, sizes, start, known(length)) for start, length, part in _pieces(stage, outer)]
    found = [each for each in ranges if each is not None]
    alone = len(kernel.function.params) == len({source for source, *_ in found}) + 1
    return found if len(found) == len(ranges) and alone else None


def _outermost(stage: Stage, sizes: list[int]) -> int | None:
    """The first axis that is longer than one, in the result or in the one tensor that a single row is cut out of."""
    given = list(sizes)
    if isinstance(stage.value, TensorLoad) and len(stage.value.source.shape) == len(sizes):
        given = [known(size) or 0 for size in stage.value.source.shape]
    return next((place for place, each in enumerate(zip(sizes, given, strict=True)) if each != (1, 1)), None)


def _pieces(stage: Stage, outer: int) -> list[tuple[int, int | Expr, Stage]]:
    return list(pieces(stage, stage.spatial[outer]))


def _range(kernel: Kernel, stage: Stage, outer: int, sizes: list[int], start: int, length: int | None) -> Range | None:
    """What the result has from `start` on, along the outermost axis."""
    value = stage.value
    if not isinstance(value, TensorLoad) or length is None or len(value.indices) != len(sizes):
        return None
    parameters = list(kernel.function.params)
    source = next((place for place, p in enumerate(parameters) if p.same_as(value.source)), None)
    if source is None or str(value.source.dtype) != str(stage.buffer.dtype):
        return None
    given = [known(size) for size in value.source.shape]
    if given[:outer] != [1] * outer or given[outer + 1 :] != sizes[outer + 1 :]:
        return None
    offsets = [
        _offset(index, axis, size) for index, axis, size in zip(value.indices, stage.spatial, sizes, strict=True)
    ]
    first = offsets[outer]
    if first is None or any(offset != 0 for place, offset in enumerate(offsets) if place != outer):
        return None
    inner = math.prod(sizes[outer + 1 :])
    return source, (start + first) * inner, start * inner, length * inner


def _offset(index: tirx.Expr, axis: Axis, size: int) -> int | None:
    """By how much an index is more than the axis."""
    if size == 1:
        return known(simplify(substitute(index, {axis.var: i64(0)})))
    return known(simplify(index - axis.var))
