"""Recognizing a division by the root of a mean of squares, of which normalizations are made.

Letters: `x` what is divided, `g` a factor, `e` epsilon. All of these are one thing:

    x / Sqrt(m + e)        x * Reciprocal(Sqrt(m + e))      x * (1 / Sqrt(m + e))     x * Sqrt(Reciprocal(m + e))
    x / Pow(m + e, 0.5)    x * Pow(m + e, -0.5)             x * (Pow(m + e, -0.5) * g)    (x * g) / Sqrt(m + e)

with the mean of squares `m` as ReduceMean of `x * x` or of `Pow(x, 2)`, or as their ReduceSum by the number of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from optimizer.ir.edit import Editor
from optimizer.ir.match import close, either_order, is_same, power, producer, scalar
from optimizer.ir.query import FLOATS, input_at, int_attribute, ints_attribute, is_op, known_ints

__all__ = ["Centred", "Mean", "Quotient", "Refusal", "Root", "centred", "inverse_root", "quotient", "refusal_of"]


@dataclass(frozen=True)
class Refusal:
    """Why what looks like a normalization is none.

    Attributes:
        reason: The condition that does not hold.
        x: What is divided.
    """

    reason: str
    x: ir.Value


@dataclass(frozen=True)
class Mean:
    """A mean over some axes, which stay with size 1.

    Attributes:
        of: What is averaged.
        axes: Sorted, counted from the front.
        nodes: From the outermost to the innermost; the last one reduces.
    """

    of: ir.Value
    axes: tuple[int, ...]
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Root:
    """`(mean(x * x) + e) ^ exponent`.

    Attributes:
        x: What is squared.
        mean: The mean of its squares.
        epsilon: What is added.
        nodes: All that compute it; the reduction is `mean.nodes[-1]`.
    """

    x: ir.Value
    mean: Mean
    epsilon: float
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Quotient:
    """`x * g / (mean(x * x) + e) ^ 0.5`.

    Attributes:
        x: What is divided.
        factor: `g`, if there is one.
        root: What it is divided by.
        nodes: All that compute it, without the last.
    """

    x: ir.Value
    factor: ir.Value | None
    root: Root
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Centred:
    """`x - mean(x)`.

    Attributes:
        x: What is centred.
        mean: Its mean.
        node: The subtraction.
    """

    x: ir.Value
    mean: Mean
    node: ir.Node


def quotient(editor: Editor, node: ir.Node) -> Quotient | Refusal | None:
    """What `node` divides by the root of its mean square."""
    refusal: Refusal | None = None
    for numerator, divisor, exponent in _sides(node):
        for inverse, second, extra in _split(divisor, node.graph, exponent):
            root = inverse_root(editor, inverse, node.graph, exponent)
            if root is None:
                continue
            for x, first, more in _split(numerator, node.graph, -1):
                if not is_same(x, root.x) or (first is not None and second is not None):
                    continue
                if isinstance(root, Refusal):
                    refusal = refusal or root
                    continue
                return Quotient(x, first or second, root, (*extra, *more, *root.nodes))
    return refusal


def _sides(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value, float]]:
    if is_op(node, "Mul"):
        for left, right in either_order(node):
            yield left, right, -0.5
    elif is_op(node, "Div") and node.inputs[0] is not None and node.inputs[1] is not None:
        yield node.inputs[0], node.inputs[1], 0.5


_Factors = Iterator[tuple[ir.Value, ir.Value | None, tuple[ir.Node, ...]]]


def _split(value: ir.Value, graph: ir.Graph | ir.Function | None, exponent: float) -> _Factors:
    """The value as it is, and where it is a product as each of its factors with the other one."""
    yield value, None, ()
    node = producer(value, graph, "Mul") if exponent < 0 else None
    if node is not None:
        for one, other in either_order(node):
            yield one, other, (node,)


def inverse_root(
    editor: Editor, value: ir.Value, graph: ir.Graph | ir.Function | None, exponent: float
) -> Root | Refusal | None:
    """The value as a root of a mean of squares.

    Args:
        editor: Knows shapes.
        value: What to look at.
        graph: The graph that everything must stand in.
        exponent: 0.5 for the root, -0.5 for its inverse.
    """
    base, found, outer = power(value, graph)
    if found == exponent:
        return _root_of(editor, base, tuple(outer))
    # x / (Sqrt(m) + e) is another function.
    inside = producer(base, graph, "Add") if found == math.copysign(1, exponent) else None
    for term, epsilon in () if inside is None else either_order(inside):
        square, half, _ = power(term, graph)
        root = _root_of(editor, square, ()) if half == 0.5 and scalar(epsilon) is not None else None
        if isinstance(root, Root):
            return Refusal(f"epsilon is added to the root {term.name!r}, not under it", root.x)
    return None


def _root_of(editor: Editor, base: ir.Value, outer: tuple[ir.Node, ...]) -> Root | Refusal | None:
    producing = base.producer()
    graph = None if producing is None else producing.graph
    candidates: list[tuple[ir.Value, ir.Value | None]] = [(base, None)]
    add = producer(base, graph, "Add")
    candidates += [] if add is None else list(either_order(add))
    for inner, added in candidates:
        mean = _mean_square(editor, inner, graph)
        if mean is None:
            continue
        x, found = mean
        if isinstance(found, Refusal):
            return found
        epsilon = 0.0 if added is None else scalar(added)
        if epsilon is None or not epsilon >= 0:
            return Refusal(f"epsilon {added.name if added else ''!r} is not one constant number of at least 0", x)
        nodes = (*outer, *(() if added is None or add is None else (add,)), *found.nodes)
        square = found.of.producer()
        return Root(x, found, epsilon, (*nodes, *(() if square is None or found.of is x else (square,))))
    return None


def _mean_square(
    editor: Editor, value: ir.Value, graph: ir.Graph | ir.Function | None
) -> tuple[ir.Value, Mean | Refusal] | None:
    mean = _mean(editor, value, graph)
    if mean is None:
        return None
    averaged = mean.of if isinstance(mean, Mean) else mean.x
    square = producer(averaged, graph, "Mul", "Pow")
    if square is None or square.inputs[0] is None:
        return None
    x = square.inputs[0]
    doubled = is_same(x, input_at(square, 1)) if square.op_type == "Mul" else scalar(input_at(square, 1)) == 2
    if not doubled:
        return None
    return x, mean if isinstance(mean, Mean) else Refusal(mean.reason, x)


def _mean(editor: Editor, value: ir.Value, graph: ir.Graph | ir.Function | None) -> Mean | Refusal | None:
    scaled = producer(value, graph, "Div", "Mul")
    if scaled is not None:
        return _scaled_sum(editor, scaled)
    node = producer(value, graph, "ReduceMean")
    return None if node is None else _reduction(editor, node)


def _scaled_sum(editor: Editor, node: ir.Node) -> Mean | None:
    """`ReduceSum(x) / n`, or times `1 / n`."""
    sides = either_order(node) if node.op_type == "Mul" else iter([(node.inputs[0], node.inputs[1])])
    for total, number in sides:
        reduce = producer(total, node.graph, "ReduceSum")
        found = None if reduce is None else _reduction(editor, reduce)
        factor = scalar(number)
        if not isinstance(found, Mean) or factor is None or factor == 0:
            continue
        dims = editor.shapes.dims(found.of) or ()
        sizes = [size for size in (dims[axis] for axis in found.axes) if isinstance(size, int)]
        count = factor if node.op_type == "Div" else 1 / factor
        if len(sizes) == len(found.axes) and close(count, math.prod(sizes), editor.shapes.dtype(found.of)):
            return Mean(found.of, found.axes, (node, *found.nodes))
    return None


def _reduction(editor: Editor, node: ir.Node) -> Mean | Refusal | None:
    source = node.inputs[0]
    dims = editor.shapes.dims(source)
    if source is None:
        return None
    if dims is None:
        return Refusal(f"the rank of {source.name!r} is not known", source)
    axes = known_ints(input_at(node, 1)) if len(node.inputs) > 1 else ints_attribute(node, "axes")
    if axes is None and input_at(node, 1) is not None:
        return Refusal(f"the axes of {node.op_type} {node.outputs[0].name!r} are not constant", source)
    if not int_attribute(node, "keepdims", 1) or not axes:
        return Refusal(f"{node.op_type} {node.outputs[0].name!r} does not keep the axes that it reduces", source)
    return Mean(source, tuple(sorted(axis % len(dims) for axis in axes)), (node,))


def centred(editor: Editor, value: ir.Value | None) -> Centred | Refusal | None:
    """The value as the difference of another one and its mean."""
    node = None if value is None else value.producer()
    if value is None or node is None or not is_op(node, "Add", "Sub") or node.inputs[0] is None:
        return None
    if node.op_type == "Sub":
        sides = [(node.inputs[0], node.inputs[1])]
    else:
        negated = [(x, producer(y, node.graph, "Neg")) for x, y in either_order(node)]
        sides = [(x, neg.inputs[0]) for x, neg in negated if neg is not None]
    for x, subtracted in sides:
        mean = None if subtracted is None else _mean(editor, subtracted, node.graph)
        if isinstance(mean, Mean) and is_same(mean.of, x):
            return Centred(x, mean, node)
        if isinstance(mean, Refusal) and is_same(mean.x, x):
            return mean
    return None


def refusal_of(editor: Editor, x: ir.Value, axes: tuple[int, ...]) -> str | None:
    """Why `x` cannot be normalized over these axes by a standard operator; `None` when it can."""
    dims, dtype = editor.shapes.dims(x), editor.shapes.dtype(x)
    if dtype not in FLOATS:
        return f"the type of {x.name!r} is not a known floating-point type"
    if dims is None:
        return f"the rank of {x.name!r} is not known"
    if axes != tuple(range(axes[0], len(dims))):
        return f"the axes {list(axes)} are not the last ones of {x.name!r}, which has rank {len(dims)}"
    if not all(isinstance(size, int) for size in dims[axes[0] :]):
        return f"the sizes of the last {len(axes)} axes of {x.name!r} are not known, and the scale needs them"
    return None
