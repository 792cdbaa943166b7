"""Stages of a kernel over the rows of a tensor.

A kernel such as Softmax is a chain of stages with the same leading axes: reduce a row, transform it, reduce it again.
The backend runs such a chain row by row, so that a row stays in the cache from the first stage to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from tvm import te, tirx

Index = Sequence[tirx.Expr]


def reduce_rows(
    shape: Sequence[tirx.Expr],
    axes: Collection[int],
    element: Callable[..., tirx.Expr],
    reducer: Callable[..., tirx.Expr],
    name: str,
) -> te.Tensor:
    """Reduce `element(*index)` of a tensor of that shape over some of its axes; the result has the others."""
    reduced = {axis: te.reduce_axis((0, shape[axis]), name=f"r{axis}") for axis in sorted(axes)}

    def row(*kept: tirx.Expr) -> tirx.Expr:
        rest = iter(kept)
        index = [reduced[axis] if axis in reduced else next(rest) for axis in range(len(shape))]
        return reducer(element(*index), axis=list(reduced.values()))

    outer = [size for axis, size in enumerate(shape) if axis not in reduced]
    return te.compute(outer, row, name=name) if outer else te.compute((1,), lambda _: row(), name=name)


def table(shape: Sequence[tirx.Expr | int], element: Callable[..., tirx.Expr], name: str) -> te.Tensor:
    """A small tensor that is computed once; an element-wise stage would be computed again in each of its readers."""
    return te.compute(shape, element, name=name, attrs={"tersor.kernel": "table"})


def row_of(index: Index, axes: Collection[int]) -> tuple[tirx.Expr, ...]:
    """The index of an element's row in what `reduce_rows` made."""
    kept = tuple(i for axis, i in enumerate(index) if axis not in axes)
    return kept or (tirx.const(0, "int64"),)


def broadcast_index(shape: Sequence[tirx.Expr], index: Index) -> tuple[tirx.Expr, ...]:
    """Where an element of a tensor finds its operand of a smaller shape, aligned at the last axis."""
    aligned = list(index)[len(index) - len(shape) :]
    return tuple(
        tirx.const(0, "int64") if isinstance(size, tirx.IntImm) and size.value == 1 else i
        for size, i in zip(shape, aligned, strict=True)
    )
