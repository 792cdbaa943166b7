"""Inputs to try a model with: seeded, never trivial, and inside the ranges that the graph asks for.

* Floats are drawn from the normal distribution: no zeros, which would hide what is multiplied with them.
* Integers that a `Gather` reads as indices (token ids, positions), or that are made one of several classes, are drawn
  from the range of those. Integers that are compared or cast to a truth value, or whose name says so, are masks of 0
  and 1. Others are small and positive.
* Masks begin with 1 in each row: a row without any 1 is a corner case on which runtimes differ.
* Symbolic dimensions get the sizes of the example inputs, if there are any, else sizes that are tried one after the
  other until the model runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.executable import Array
from optimizer.ir.query import array, constant, int_attribute, is_op
from optimizer.ir.symbolic import parse_dim

__all__ = ["candidate_inputs", "inputs_of_other_sizes"]

_SPATIAL_FROM_AXIS = 2
_TRUTHS = 2
"""Numbers to compare with, up to which it is a question of true or false."""
_TRIED_SIZES = ((2, 8, 64), (1, 8, 224), (1, 1, 1), (4, 4, 4), (1, 32, 32), (1, 320, 320))
"""Sizes of symbolic dimensions: the first axis (a batch), the second, and the rest (pixels)."""

_KEEPS_ELEMENTS = frozenset(
    ("Cast", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
)
_TRUTH_OPERATORS = frozenset(
    ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Where", "Xor")
)
_SMALL = 4
"""Integers of which nothing is known are drawn from 1 to this."""

_OTHER_SIZES: tuple[Callable[[int], int], ...] = (
    lambda size: size + 1,
    lambda size: 2 * size,
    lambda size: max(1, size // 2),
)
"""What to make of the sizes that ran: one more where everything goes, else something with the same divisors."""

_MAX_ELEMENTS = 2**28
"""Larger inputs are not made up."""


def candidate_inputs(
    graph: ir.Graph, seed: int, example: Sequence[Array] | None = None, dims: Mapping[str, int] | None = None
) -> Iterator[list[Any]]:
    """Sets of inputs for a graph, the likeliest first.

    Args:
        graph: Its inputs say what is asked for.
        seed: The same seed gives the same sets.
        example: Inputs that are known to run, one for each of the graph; their shapes are kept.
        dims: Sizes of symbolic dimensions that are not up for trying.
    """
    if example is not None:
        rng = np.random.default_rng(seed)
        yield [_like_example(value, given, rng) for value, given in zip(graph.inputs, example, strict=True)]
        yield list(example)
        return
    tried: set[tuple[tuple[int, ...], ...]] = set()
    for sizes in _TRIED_SIZES:
        symbols = dict(dims or {})
        shapes = [_shape(value, sizes, symbols) for value in graph.inputs]
        if tuple(shapes) in tried:
            continue
        tried.add(tuple(shapes))
        if sum(map(math.prod, shapes)) > _MAX_ELEMENTS:
            continue
        rng = np.random.default_rng(seed)
        yield [_draw(value, value.type, shape, rng) for value, shape in zip(graph.inputs, shapes, strict=True)]


def inputs_of_other_sizes(graph: ir.Graph, seed: int, first: Sequence[Any]) -> Iterator[list[Any]]:
    """Sets of inputs in which the symbolic dimensions have other sizes than in `first`, the likeliest to run first.

    Args:
        graph: Its inputs say what is asked for.
        seed: Other numbers than those that it gives are drawn.
        first: Inputs that run. Without symbolic dimensions nothing is given.
    """
    known = _sizes_of_symbols(graph, first)
    for change in _OTHER_SIZES if known else ():
        dims = {name: change(size) for name, size in known.items()}
        if dims != known:
            yield next(iter(candidate_inputs(graph, seed + 1, dims=dims)), [])


def _sizes_of_symbols(graph: ir.Graph, inputs: Sequence[Any]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for value, given in zip(graph.inputs, inputs, strict=True):
        if value.shape is None or not isinstance(given, np.ndarray) or len(value.shape) != given.ndim:
            continue
        for dim, size in zip(value.shape, given.shape, strict=True):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                sizes.setdefault(dim.value, size)
    return sizes


def _shape(value: ir.Value, sizes: tuple[int, int, int], symbols: dict[str, int]) -> tuple[int, ...]:
    if value.shape is None:
        return (sizes[0], sizes[1])
    shape = []
    for axis, dim in enumerate(value.shape):
        size = sizes[min(axis, _SPATIAL_FROM_AXIS)]
        shape.append(dim if isinstance(dim, int) else _symbol_size(dim.value, size, symbols))
    return tuple(shape)


def _symbol_size(name: str | None, default: int, symbols: dict[str, int]) -> int:
    """A name has the same size everywhere; an expression such as `past + seq` has the size of its parts."""
    if name is None:
        return default
    expression = parse_dim(name)
    if isinstance(expression, int):
        return expression
    for symbol in sorted(expression.symbols):
        symbols.setdefault(symbol, default)
    total = 0
    for monomial, coefficient in expression.terms.items():
        product = coefficient
        for symbol in monomial:
            product *= symbols[symbol]
        total += product
    return max(1, total)


def _draw(value: ir.Value, type_: ir.TypeProtocol | None, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    if isinstance(type_, ir.SequenceType):
        return [_draw(value, type_.elem_type, shape, rng) for _ in range(3)]
    if isinstance(type_, ir.OptionalType):
        return _draw(value, type_.elem_type, shape, rng)
    dtype = ir.DataType.FLOAT if type_ is None or type_.dtype == ir.DataType.UNDEFINED else type_.dtype
    if dtype == ir.DataType.STRING:
        return rng.choice(np.array(["a", "b", "tersor"], dtype=object), size=shape)
    if dtype == ir.DataType.BOOL or (dtype.is_integer() and _is_mask(value)):
        return _mask(shape, rng).astype(dtype.numpy())
    if dtype.is_integer():
        bound = index_bound(value)
        low, high = (1, _SMALL + 1) if bound is None else (0, bound)
        high = min(high, 2 ** (dtype.bitwidth - (1 if dtype.is_signed() else 0)))
        return rng.integers(min(low, high - 1), high, size=shape).astype(dtype.numpy())
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype.numpy())
    return rng.standard_normal(shape).astype(dtype.numpy())


def _like_example(value: ir.Value, given: Any, rng: np.random.Generator) -> Any:
    """Other numbers in the same shape; integers of unknown range keep those of the example."""
    if not isinstance(given, np.ndarray) or value.dtype is None or not isinstance(value.type, ir.TensorType):
        return given
    if value.dtype.is_integer() and not _is_mask(value) and index_bound(value) is None:
        return given
    return _draw(value, value.type, given.shape, rng)


def _mask(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    mask = np.asarray(rng.random(shape) < 0.75)
    if mask.ndim and mask.size:
        mask[..., 0] = True
    return mask


def _is_mask(value: ir.Value) -> bool:
    name = (value.name or "").lower()
    return "mask" in name or (index_bound(value) is None and any(map(_asks_for_truth, _readers(value))))


def _asks_for_truth(node: ir.Node) -> bool:
    return is_op(node, *_TRUTH_OPERATORS) or _casts_to_truth(node)


def _casts_to_truth(node: ir.Node) -> bool:
    return is_op(node, "Cast") and node.attributes["to"].as_int() == ir.DataType.BOOL


def index_bound(value: ir.Value) -> int | None:
    """The smallest table that the value's elements are indices of; `None` when they index nothing."""
    bounds = []
    for node in _readers(value):
        if is_op(node, "Gather", "GatherElements") and node.inputs[0] is not None and node.inputs[0].shape is not None:
            table = node.inputs[0]
            rank, axis = len(table.shape), int_attribute(node, "axis", 0)  # type: ignore[arg-type]
            size = table.shape[axis] if -rank <= axis < rank else 1  # type: ignore[index]
            if isinstance(size, int) and (constant(table) is not None or is_op(node, "GatherElements")):
                bounds.append(size)
        elif (classes := _classes(node)) is not None:
            bounds.append(classes)
    return min(bounds, default=None)


def _classes(node: ir.Node) -> int | None:
    """How many numbers from 0 on a node tells apart: the depth of a OneHot, or what an Equal compares with."""
    if is_op(node, "OneHot"):
        depth = array(node.inputs[1])
        return int(depth.item()) if depth is not None and depth.size == 1 and depth.item() > 0 else None
    if not is_op(node, "Equal"):
        return None
    others = [elements for value in node.inputs if (elements := array(value)) is not None]
    if len(others) != 1 or others[0].dtype.kind not in "iu" or others[0].size <= _TRUTHS or others[0].min() < 0:
        return None
    return int(others[0].max()) + 1


def _readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that read the value's elements, directly or after they were only moved or cast."""
    readers: list[ir.Node] = []
    seen: set[ir.Value] = {value}
    pending = [value]
    while pending:
        for node, index in pending.pop().uses():
            keeps = is_op(node, *_KEEPS_ELEMENTS) and not _casts_to_truth(node)
            if keeps and (index == 0 or node.op_type == "Concat"):
                pending.extend(out for out in node.outputs if out not in seen)
                seen.update(node.outputs)
            elif not (is_op(node, "Gather", "GatherElements") and index == 0):
                readers.append(node)
    return readers
