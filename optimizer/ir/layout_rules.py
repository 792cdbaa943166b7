"""Shapes of outputs of the operators that move elements about: Reshape, Slice, Concat, Gather and their kind."""

from __future__ import annotations

import onnx_ir as ir

from optimizer.ir.query import int_attribute, ints_attribute, tensor_of
from optimizer.ir.shape_info import Dims, Info, NodeView, Rule, axes_of, broadcast, normal_axis, tensor
from optimizer.ir.symbolic import Dim, at_least_zero, exact_div, floor_div, is_at_least, minimum, product

__all__ = ["LAYOUT_RULES"]

_END = 2**31 - 1
"""A slice that ends here or later ends where its axis does."""


def _reshape(view: NodeView) -> Info | None:
    dims, wanted = view.dims(0), view.data(1)
    if wanted is None:
        return _rank_of_vector(view, 1)
    if not int_attribute(view.node, "allowzero", 0):
        if any(item == 0 and (dims is None or i >= len(dims)) for i, item in enumerate(wanted)):
            return tensor(view.dtype(0), view.unknown_dims(len(wanted)))
        wanted = tuple(dims[i] if item == 0 and dims else item for i, item in enumerate(wanted))
    return tensor(view.dtype(0), _resolve_minus_one(view, dims, wanted))


def _resolve_minus_one(view: NodeView, dims: Dims | None, wanted: Dims) -> Dims:
    open_axes = [i for i, item in enumerate(wanted) if item == -1]
    if not open_axes:
        return sizes(view, wanted)
    axis = open_axes[0]
    rest = wanted[:axis] + wanted[axis + 1 :]
    if not all(is_at_least(item, 0) for item in rest):
        return view.unknown_dims(len(wanted))
    size = view.fresh() if dims is None or product(rest) == 0 else floor_div(product(dims), product(rest))
    return (*wanted[:axis], size, *wanted[axis + 1 :])


def _rank_of_vector(view: NodeView, index: int) -> Info | None:
    """The input at `index` is a shape of which only its length is known."""
    length = view.dims(index)
    if length is None or len(length) != 1 or not isinstance(length[0], int):
        return None
    return tensor(view.dtype(0), view.unknown_dims(length[0]))


def _flatten(view: NodeView) -> Info | None:
    dims = view.dims(0)
    if dims is None:
        return None
    axis = int_attribute(view.node, "axis", 1)
    axis = axis + len(dims) if axis < 0 else axis
    return tensor(view.dtype(0), (product(dims[:axis]), product(dims[axis:])))


def _transpose(view: NodeView) -> Info | None:
    dims = view.dims(0)
    if dims is None:
        return None
    order = ints_attribute(view.node, "perm") or tuple(reversed(range(len(dims))))
    if sorted(order) != list(range(len(dims))):
        return None
    return tensor(view.dtype(0), [dims[axis] for axis in order])


def _squeeze(view: NodeView) -> Info | None:
    dims, axes = view.dims(0), axes_of(view)
    if dims is None or axes is None:
        return None
    if not axes:
        if not all(isinstance(dim, int) for dim in dims):
            return None
        return tensor(view.dtype(0), [dim for dim in dims if dim != 1])
    dropped = {normal_axis(axis, len(dims)) for axis in axes}
    return tensor(view.dtype(0), [dim for axis, dim in enumerate(dims) if axis not in dropped])


def _unsqueeze(view: NodeView) -> Info | None:
    dims, axes = view.dims(0), axes_of(view)
    if dims is None or axes is None:
        return None
    added = {normal_axis(axis, len(dims) + len(axes)) for axis in axes}
    if None in added or len(added) != len(axes):
        return None
    old = iter(dims)
    return tensor(view.dtype(0), [1 if axis in added else next(old) for axis in range(len(dims) + len(axes))])


def _concat(view: NodeView) -> Info | None:
    shapes = [info.dims for info in view.inputs if info and info.dims is not None]
    if len(shapes) < len(view.inputs) or not shapes or len({len(dims) for dims in shapes}) != 1:
        return None
    axis = normal_axis(int_attribute(view.node, "axis", 0), len(shapes[0]))
    if axis is None:
        return None
    dims = [next((dim for dim in along if isinstance(dim, int)), along[0]) for along in zip(*shapes, strict=True)]
    total: Dim = 0
    for shape in shapes:
        total = total + shape[axis]
    dims[axis] = total
    return tensor(view.dtype(0), dims)


def _split(view: NodeView) -> list[Info] | None:
    dims = view.dims(0)
    axis = None if dims is None else normal_axis(int_attribute(view.node, "axis", 0), len(dims))
    if dims is None or axis is None:
        return None
    count = len(view.node.outputs)
    sizes: tuple[Dim, ...] | None = view.data(1) if view.has(1) else ints_attribute(view.node, "split")
    if sizes is None and not view.has(1):
        sizes = _equal_parts(dims[axis], count)
    if sizes is None:
        sizes = view.unknown_dims(count)
    if len(sizes) != count:
        return None
    return [tensor(view.dtype(0), (*dims[:axis], size, *dims[axis + 1 :])) for size in sizes]


def _equal_parts(whole: Dim, count: int) -> Dims | None:
    """All parts are as large as the first; the last one may be smaller."""
    if isinstance(whole, int):
        part = -(-whole // count)
        return (*[part] * (count - 1), whole - part * (count - 1))
    exact = exact_div(whole, count)
    return None if exact is None else (exact,) * count


def _slice(view: NodeView) -> Info | None:
    dims = view.dims(0)
    if dims is None or not view.has(1):
        return None
    starts, ends = view.data(1), view.data(2)
    axes = view.ints(3) if view.has(3) else _first_axes(view.dims(1))
    if axes is None:
        return tensor(view.dtype(0), view.unknown_dims(len(dims)))
    steps = view.ints(4) if view.has(4) else (1,) * len(axes)
    result = list(dims)
    for i, axis in enumerate(axes):
        position = normal_axis(axis, len(dims))
        if position is None:
            return None
        size = None
        if starts is not None and ends is not None and steps is not None:
            size = _slice_size(dims[position], starts[i], ends[i], steps[i])
        result[position] = view.fresh() if size is None else size
    return tensor(view.dtype(0), result)


def _first_axes(starts: Dims | None) -> tuple[int, ...] | None:
    """Without axes, a slice is along the first ones, as many as it has starts."""
    if starts is None or len(starts) != 1 or not isinstance(starts[0], int):
        return None
    return tuple(range(starts[0]))


def _slice_size(dim: Dim, start: Dim, end: Dim, step: int) -> Dim | None:
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(dim))) if step else None
    if step != 1 or not is_at_least(start, 0):
        return None
    if end == dim or (isinstance(end, int) and end >= _END):
        stop = dim
    elif is_at_least(end, 0):
        stop = minimum(end, dim)
    elif isinstance(end, int):
        stop = dim + end
    else:
        return None
    return at_least_zero(stop - start)


def _gather(view: NodeView) -> Info | None:
    dims, indices = view.dims(0), view.dims(1)
    axis = None if dims is None else normal_axis(int_attribute(view.node, "axis", 0), len(dims))
    if dims is None or indices is None or axis is None:
        return None
    return tensor(view.dtype(0), (*dims[:axis], *indices, *dims[axis + 1 :]))


def _like_indices(view: NodeView) -> Info:
    return tensor(view.dtype(0), view.dims(1))


def _expand(view: NodeView) -> Info | None:
    dims, wanted = view.dims(0), view.data(1)
    if dims is None:
        return None
    if wanted is not None:
        return tensor(view.dtype(0), broadcast(view, [dims, sizes(view, wanted)]))
    guess = _rank_of_vector(view, 1)
    if guess is None or guess.dims is None:
        return None
    return tensor(view.dtype(0), broadcast(view, [dims, guess.dims]))


def _tile(view: NodeView) -> Info | None:
    dims, repeats = view.dims(0), view.data(1)
    if dims is None:
        return None
    if repeats is None or len(repeats) != len(dims):
        return tensor(view.dtype(0), view.unknown_dims(len(dims)))
    return tensor(view.dtype(0), [dim * times for dim, times in zip(dims, repeats, strict=True)])


def _pad(view: NodeView) -> Info | None:
    dims = view.dims(0)
    if dims is None:
        return None
    pads: tuple[Dim, ...] | None = view.data(1) if view.has(1) else ints_attribute(view.node, "pads")
    axes = view.ints(3) if view.has(3) else tuple(range(len(dims)))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return tensor(view.dtype(0), view.unknown_dims(len(dims)))
    result = list(dims)
    for i, axis in enumerate(axes):
        position = normal_axis(axis, len(dims))
        if position is None:
            return None
        result[position] = result[position] + pads[i] + pads[i + len(axes)]
    return tensor(view.dtype(0), result)


def _constant_of_shape(view: NodeView) -> Info | None:
    value = view.node.attributes.get("value")
    dtype = ir.DataType.FLOAT if value is None else tensor_of(value).dtype
    dims = view.data(0)
    if dims is not None:
        return tensor(dtype, sizes(view, dims))
    length = view.dims(0)
    if length is None or len(length) != 1 or not isinstance(length[0], int):
        return tensor(dtype, None)
    return tensor(dtype, view.unknown_dims(length[0]))


def _range(view: NodeView) -> Info:
    start, limit, step = view.data(0), view.data(1), view.data(2)
    size: Dim | None = None
    if start is not None and limit is not None and step is not None:
        first, last, by = start[0], limit[0], step[0]
        if isinstance(first, int) and isinstance(last, int) and isinstance(by, int) and by:
            size = len(range(first, last, by))
        elif by == 1:
            size = at_least_zero(last - first)
    return tensor(view.dtype(0), (view.fresh() if size is None else size,))


def _shape(view: NodeView) -> Info | None:
    dims = view.dims(0)
    if dims is None:
        return None
    start = int_attribute(view.node, "start", 0)
    end = int_attribute(view.node, "end", len(dims))
    data = dims[slice(start, end)]
    return tensor(ir.DataType.INT64, (len(data),))


def _size(view: NodeView) -> Info:
    return tensor(ir.DataType.INT64, ())


def sizes(view: NodeView, dims: Dims) -> Dims:
    """Elements of a tensor that are used as sizes, so none of them can be negative."""
    return tuple(item if is_at_least(item, 0) else view.fresh() for item in dims)


LAYOUT_RULES: dict[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _like_indices,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""Rule by operator."""
