"""A part of the last axis of a value, however it is taken."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.query import input_at, int_attribute, is_op, known_ints
from optimizer.ir.shapes import Shapes

__all__ = ["Part", "halves", "joined", "last_size", "part_of"]


@dataclass(frozen=True)
class Part:
    """`source[..., start:stop:step]`."""

    source: ir.Value
    start: int
    stop: int
    step: int = 1


def part_of(shapes: Shapes, value: ir.Value | None) -> Part | None:
    """What part of which value it is: by a Slice, a Split, or a Gather from pairs."""
    node = None if value is None else value.producer()
    if node is None or value is None:
        return None
    if is_op(node, "Slice"):
        return _sliced(shapes, node)
    if is_op(node, "Split"):
        return _split(shapes, node, value)
    return _gathered(shapes, node) if is_op(node, "Gather") else None


def halves(first: Part | None, second: Part | None, size: int) -> bool | None:
    """Whether two parts are the even and odd elements of one value; `False` for its two halves, `None` for neither."""
    if first is None or second is None or first.source is not second.source or size % 2:
        return None
    parts = [(part.start, part.stop, part.step) for part in (first, second)]
    if parts == [(0, size // 2, 1), (size // 2, size, 1)]:
        return False
    even_and_odd = [part[0::2] for part in parts] == [(0, 2), (1, 2)]
    return True if even_and_odd and all(stop >= size - 1 for _, stop, _ in parts) else None


def joined(shapes: Shapes, value: ir.Value | None) -> tuple[ir.Value, ir.Value, bool] | None:
    """Two values of which the last axis is put together, and whether alternately rather than one behind the other."""
    node = None if value is None else value.producer()
    dims = shapes.dims(value)
    if node is None or dims is None:
        return None
    if is_op(node, "Concat") and _is_last(node, len(dims)) and len(node.inputs) == 2:
        left, right = node.inputs
        return None if left is None or right is None else (left, right, False)
    inner = node.inputs[0].producer() if is_op(node, "Reshape") and node.inputs[0] is not None else None
    if inner is None or not is_op(inner, "Concat") or len(inner.inputs) != 2:
        return None
    pairs = shapes.dims(inner.outputs[0])
    if pairs is None or pairs[:-2] != dims[:-1] or pairs[-1] != 2 or not _is_last(inner, len(pairs)):
        return None
    left, right = (_without_last(shapes, given) for given in inner.inputs)
    return None if left is None or right is None else (left, right, True)


def last_size(shapes: Shapes, value: ir.Value | None) -> int | None:
    """The size of the last axis, when it is a plain number."""
    dims = shapes.dims(value)
    return dims[-1] if dims and isinstance(dims[-1], int) else None


def _sliced(shapes: Shapes, node: ir.Node) -> Part | None:
    source = node.inputs[0]
    dims, size = shapes.dims(source), last_size(shapes, source)
    starts, stops = (known_ints(input_at(node, index)) for index in (1, 2))
    axes, steps = (known_ints(input_at(node, index)) for index in (3, 4))
    if source is None or dims is None or size is None or starts is None or stops is None:
        return None
    if len(starts) != 1 or len(stops) != 1 or (steps is None and input_at(node, 4) is not None):
        return None
    if axes not in ((-1,), (len(dims) - 1,)) and not (axes is None and len(dims) == 1):
        return None
    start, stop, step = starts[0], stops[0], steps[0] if steps else 1
    start, stop = (bound + size if bound < 0 else min(bound, size) for bound in (start, stop))
    return Part(source, start, stop, step) if step > 0 and 0 <= start < stop else None


def _split(shapes: Shapes, node: ir.Node, value: ir.Value) -> Part | None:
    source = node.inputs[0]
    dims = shapes.dims(source)
    sizes = [last_size(shapes, output) for output in node.outputs]
    if source is None or dims is None or not _is_last(node, len(dims)):
        return None
    index = value.index()
    plain = [size for size in sizes if size is not None]
    if index is None or len(plain) != len(sizes):
        return None
    return Part(source, sum(plain[:index]), sum(plain[: index + 1]))


def _gathered(shapes: Shapes, node: ir.Node) -> Part | None:
    """`Gather(Reshape(x, [..., h, 2]), i)` is every second element of `x` from `i` on."""
    pairs, index = node.inputs[0], known_ints(input_at(node, 1))
    dims = shapes.dims(pairs)
    if dims is None or pairs is None or dims[-1] != 2 or index not in ((0,), (1,), (-1,), (-2,)):
        return None
    indices = shapes.dims(node.inputs[1])
    if indices != () or not _is_last(node, len(dims)):
        return None
    inner = pairs.producer()
    source = inner.inputs[0] if inner is not None and is_op(inner, "Reshape") else None
    size = last_size(shapes, source)
    if source is None or size is None or (shapes.dims(source) or ())[:-1] != dims[:-2]:
        return None
    return Part(source, index[0] % 2, size, 2)


def _is_last(node: ir.Node, rank: int) -> bool:
    return int_attribute(node, "axis", 0) in (-1, rank - 1)


def _without_last(shapes: Shapes, value: ir.Value | None) -> ir.Value | None:
    """What was given a last axis of size 1."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "Unsqueeze", "Reshape"):
        return None
    before, after = shapes.dims(node.inputs[0]), shapes.dims(node.outputs[0])
    return node.inputs[0] if before is not None and after == (*before, 1) else None
