"""Elements of small integer tensors, symbolically: the arithmetic that exporters do on shapes.

Only tensors of rank 0 and 1 with at most `MAX_ELEMENTS` elements are followed. Booleans are 0 and 1. A rule gives the
elements of the output, or `None`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import onnx_ir as ir

from optimizer.ir.query import int_attribute, tensor_of
from optimizer.ir.shape_info import Dims, Info, NodeView
from optimizer.ir.symbolic import Dim, exact_div, floor_div, is_at_least, maximum, minimum, modulo, product

__all__ = ["DATA_RULES", "MAX_ELEMENTS", "DataRule"]

MAX_ELEMENTS = 64
_INT64_LIMIT = 2**63
_INT32_LIMIT = 2**31

DataRule = Callable[[NodeView, Info], "Dims | None"]
"""Takes the node and what the shape rule said of its output."""


def _shape(view: NodeView, output: Info) -> Dims | None:
    dims = view.dims(0)
    if dims is None:
        return None
    return dims[slice(int_attribute(view.node, "start", 0), int_attribute(view.node, "end", len(dims)))]


def _size(view: NodeView, output: Info) -> Dims | None:
    dims = view.dims(0)
    return None if dims is None else (product(dims),)


def _same(view: NodeView, output: Info) -> Dims | None:
    return view.data(0)


def _cast(view: NodeView, output: Info) -> Dims | None:
    data = view.data(0)
    if data is None or output.type is None or output.type.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
        return None
    limit = _INT32_LIMIT if output.type.dtype == ir.DataType.INT32 else _INT64_LIMIT
    return data if all(not isinstance(item, int) or -limit <= item < limit for item in data) else None


def _gather(view: NodeView, output: Info) -> Dims | None:
    data, indices, dims = view.data(0), view.ints(1), view.dims(0)
    if data is None or indices is None or dims is None or len(dims) != 1:
        return None
    return tuple(data[index] for index in indices)


def _slice(view: NodeView, output: Info) -> Dims | None:
    data, starts, ends = view.data(0), view.ints(1), view.ints(2)
    steps = view.ints(4) if view.has(4) else (1,)
    if data is None or not starts or not ends or not steps or len(view.dims(0) or ()) != 1 or not steps[0]:
        return None
    return data[slice(*slice(starts[0], ends[0], steps[0]).indices(len(data)))] if steps[0] > 0 else None


def _concat(view: NodeView, output: Info) -> Dims | None:
    result: list[Dim] = []
    for info in view.inputs:
        if info is None or info.data is None:
            return None
        result += info.data
    return tuple(result)


def _constant_of_shape(view: NodeView, output: Info) -> Dims | None:
    sizes, value = view.ints(0), view.node.attributes.get("value")
    if sizes is None or value is None or len(sizes) != 1 or not 0 <= sizes[0] <= MAX_ELEMENTS:
        return None
    return (int(tensor_of(value).numpy().reshape(-1)[0]),) * sizes[0]


def _range(view: NodeView, output: Info) -> Dims | None:
    start, limit, step = view.ints(0), view.ints(1), view.ints(2)
    if not start or not limit or not step or not step[0]:
        return None
    found = range(start[0], limit[0], step[0])
    return tuple(found) if len(found) <= MAX_ELEMENTS else None


def _expand(view: NodeView, output: Info) -> Dims | None:
    data = view.data(0)
    count = output.dims[0] if output.dims else 1
    return data * count if data is not None and len(data) == 1 and isinstance(count, int) else None


def _reduce_prod(view: NodeView, output: Info) -> Dims | None:
    data = view.data(0)
    return None if data is None or (view.has(1) and view.ints(1) not in ((0,), (-1,))) else (product(data),)


def _negate(view: NodeView, output: Info) -> Dims | None:
    data = view.data(0)
    return None if data is None else tuple(-item for item in data)


def _not(view: NodeView, output: Info) -> Dims | None:
    data = view.ints(0)
    return None if data is None else tuple(1 - item for item in data)


def _pairwise(compute: Callable[[Dim, Dim], Dim | None]) -> DataRule:
    """Element by element, a single element against all."""

    def rule(view: NodeView, output: Info) -> Dims | None:
        left, right = view.data(0), view.data(1)
        if left is None or right is None or len(view.inputs) != 2:
            return None
        result = [compute(a, b) for a, b in _stretched(left, right)]
        known = tuple(item for item in result if item is not None)
        return known if len(known) == len(result) else None

    return rule


def _stretched(left: Dims, right: Dims) -> zip[tuple[Dim, Dim]]:
    count = max(len(left), len(right)) if left and right else 0
    return zip(
        left * (count if len(left) == 1 else 1),
        right * (count if len(right) == 1 else 1),
        strict=True,
    )


def _divide(left: Dim, right: Dim) -> Dim | None:
    """ONNX integer division truncates; on what is not negative that is rounding down."""
    if right == 0:
        return None
    if isinstance(left, int) and isinstance(right, int):
        return abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    if is_at_least(left, 0) and is_at_least(right, 0):
        return floor_div(left, right)
    return exact_div(left, right)


def _sized(compute: Callable[[Dim, Dim], Dim]) -> Callable[[Dim, Dim], Dim | None]:
    """What may have to name its result a symbol, which must not be negative."""

    def guarded(left: Dim, right: Dim) -> Dim | None:
        return compute(left, right) if is_at_least(left, 0) and is_at_least(right, 0) else None

    return guarded


def _modulo(left: Dim, right: Dim) -> Dim | None:
    return None if right == 0 or not (is_at_least(left, 0) and is_at_least(right, 0)) else modulo(left, right)


def _equal(left: Dim, right: Dim) -> Dim | None:
    if left == right:
        return 1
    return 0 if _less(left, right) == 1 or _less(right, left) == 1 else None


def _less(left: Dim, right: Dim) -> Dim | None:
    if is_at_least(right - left, 1):
        return 1
    return 0 if is_at_least(left - right, 0) else None


def _flip(value: Dim | None) -> Dim | None:
    return None if value is None else 1 - value


def _where(view: NodeView, output: Info) -> Dims | None:
    choose, left, right = view.ints(0), view.data(1), view.data(2)
    if choose is None or left is None or right is None:
        return None
    count = max(len(choose), len(left), len(right))
    choices, lefts, rights = (items * count if len(items) == 1 else items for items in (choose, left, right))
    if not len(choices) == len(lefts) == len(rights) == count:
        return None
    return tuple(a if choice else b for choice, a, b in zip(choices, lefts, rights, strict=True))


DATA_RULES: dict[str, DataRule] = {
    "Add": _pairwise(operator.add),
    "And": _pairwise(lambda a, b: a * b),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _pairwise(_divide),
    "Equal": _pairwise(_equal),
    "Expand": _expand,
    "Flatten": _same,
    "Gather": _gather,
    "Greater": _pairwise(lambda a, b: _less(b, a)),
    "GreaterOrEqual": _pairwise(lambda a, b: _flip(_less(a, b))),
    "Identity": _same,
    "Less": _pairwise(_less),
    "LessOrEqual": _pairwise(lambda a, b: _flip(_less(b, a))),
    "Max": _pairwise(_sized(maximum)),
    "Min": _pairwise(_sized(minimum)),
    "Mod": _pairwise(_modulo),
    "Mul": _pairwise(operator.mul),
    "Neg": _negate,
    "Not": _not,
    "Or": _pairwise(lambda a, b: a + b - a * b),
    "Range": _range,
    "ReduceProd": _reduce_prod,
    "Reshape": _same,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _same,
    "Sub": _pairwise(operator.sub),
    "Unsqueeze": _same,
    "Where": _where,
}
"""Rule by operator."""
