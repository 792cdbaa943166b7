"""Cuts of all other operators: those that work on each element, each row, each head, or only move data.

Which windows of its inputs a window of a result needs. A rule gives `None` where the result cannot be cut along that
axis: the operator stays whole then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import has_reference, input_at, int_attribute, ints_attribute, known_ints
from passes.tiling.cut import WHOLE, Cut, Request, Window
from passes.tiling.windows import WINDOW_RULES, Rule

__all__ = ["ELEMENTWISE", "VIEWS", "cut_of", "is_cuttable"]

# fmt: off
ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min",
    "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu", "Where", "Xor",
})
# fmt: on
VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


def is_cuttable(nodes: Iterable[ir.Node]) -> bool:
    """Whether there is a rule for each node."""
    return all(node.domain == "" and (node.op_type in ELEMENTWISE or node.op_type in _RULES) for node in nodes)


def cut_of(request: Request) -> Cut | None:
    """How a window of an output is computed; `None` if it cannot be."""
    node = request.node
    if node.domain != "" or has_reference(node) or request.shape(node.outputs[request.output]) is None:
        return None
    if any(value is not None and request.shape(value) is None for value in node.inputs):
        return None
    rule = _elementwise if node.op_type in ELEMENTWISE else _RULES.get(node.op_type)
    return None if rule is None else rule(request)


def _elementwise(request: Request) -> Cut | None:
    """An input with one element along the axis, or without the axis, is the same for all windows."""
    rank = len(request.output_shape)
    windows = (_broadcast(request.input_shape(i), rank, request.window) for i in range(len(request.node.inputs)))
    return Cut(tuple(windows), request.window)


def _broadcast(shape: tuple[int, ...] | None, rank: int, window: Window) -> Window:
    axis = -1 if shape is None else window.axis - (rank - len(shape))
    if shape is None or axis < 0 or shape[axis] == 1:
        return WHOLE
    return Window(axis, window.start, window.stop)


def _along_the_last(request: Request) -> Cut | None:
    """A normalization or a softmax: what lies before its axis is independent."""
    rank = len(request.output_shape)
    default = -1 if request.opset >= 13 or request.node.op_type not in _SOFTMAX else 1
    axis = int_attribute(request.node, "axis", default) % rank
    softmax = request.node.op_type in _SOFTMAX
    independent = request.window.axis != axis if softmax and request.opset >= 13 else request.window.axis < axis
    if not independent or request.output != 0 or any(o.uses() or o.is_graph_output() for o in request.node.outputs[1:]):
        return None
    factors = (_broadcast(request.input_shape(i), rank, request.window) for i in range(1, len(request.node.inputs)))
    return Cut((request.window, *factors), request.window)


_SOFTMAX = ("LogSoftmax", "Softmax")


def _batch_norm(request: Request) -> Cut | None:
    if len(request.node.outputs) != 1:
        return None
    window = request.window
    statistics = Window(0, window.start, window.stop) if window.axis == 1 else WHOLE
    return Cut((window, *(statistics,) * (len(request.node.inputs) - 1)), window)


def _per_image(request: Request) -> Cut | None:
    """An InstanceNormalization or GroupNormalization of each image."""
    if request.window.axis != 0:
        return None
    return Cut((request.window, *(WHOLE,) * (len(request.node.inputs) - 1)), request.window)


def _matmul(request: Request) -> Cut | None:
    """Rows come from the first operand, columns from the second; what is in front of both is broadcast."""
    a, b = request.input_shape(0), request.input_shape(1)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    rank, window = len(request.output_shape), request.window
    if window.axis == rank - 1:
        return Cut((WHOLE, Window(len(b) - 1, window.start, window.stop)), window)
    if window.axis == rank - 2:
        return Cut((Window(len(a) - 2, window.start, window.stop), WHOLE), window)
    return Cut((_broadcast(a, rank, window), _broadcast(b, rank, window)), window)


def _gemm(request: Request) -> Cut | None:
    node, window = request.node, request.window
    summand = (_broadcast(request.input_shape(2), 2, window),) if len(node.inputs) > 2 else ()
    if window.axis == 0:
        rows = Window(int_attribute(node, "transA", 0), window.start, window.stop)
        return Cut((rows, WHOLE, *summand), window)
    columns = Window(1 - int_attribute(node, "transB", 0), window.start, window.stop)
    return Cut((WHOLE, columns, *summand), window)


def _transpose(request: Request) -> Cut | None:
    rank = len(request.output_shape)
    order = ints_attribute(request.node, "perm") or tuple(reversed(range(rank)))
    return Cut((Window(order[request.window.axis], request.window.start, request.window.stop),), request.window)


def _view(request: Request) -> Cut | None:
    """A Reshape, Flatten, Squeeze or Unsqueeze: the axis must be one before it as well."""
    shape, result, window = request.input_shape(0), request.output_shape, request.window
    if shape is None:
        return None
    before = math.prod(result[: window.axis])
    for axis, size in enumerate(shape):
        if size == result[window.axis] and math.prod(shape[:axis]) == before and size != 1:
            cut_shape = np.array(window.shape(result), np.int64)
            attributes = dict.fromkeys(request.node.attributes)
            windows = (Window(axis, window.start, window.stop), WHOLE)
            return Cut(windows, window, attributes, {1: cut_shape}, op_type="Reshape")
    return None


def _concat(request: Request) -> Cut | None:
    axis = int_attribute(request.node, "axis", 0) % len(request.output_shape)
    window = request.window
    return None if window.axis == axis else Cut((window,) * len(request.node.inputs), window)


def _split(request: Request) -> Cut | None:
    """Along its own axis a part is a window of the whole; along another one, a Slice of a window."""
    node, window = request.node, request.window
    axis = int_attribute(node, "axis", 0) % len(request.output_shape)
    sizes = [(request.shape(output) or (0,) * (axis + 1))[axis] for output in node.outputs]
    start = sum(sizes[: request.output])
    if window.axis == axis:
        moved = Window(axis, window.start + start, window.stop + start)
        return Cut((moved, *(WHOLE,) * (len(node.inputs) - 1)), window, op_type="")
    bounds = {1: start, 2: start + sizes[request.output], 3: axis}
    constants = {index: np.array([bound], np.int64) for index, bound in bounds.items()}
    attributes = dict.fromkeys(node.attributes)
    return Cut((window, WHOLE, WHOLE, WHOLE), window, attributes, constants, op_type="Slice")


def _slice(request: Request) -> Cut | None:
    """Along an axis that it does not touch."""
    shape, result = request.input_shape(0), request.output_shape
    axes = known_ints(input_at(request.node, 3))
    starts = known_ints(input_at(request.node, 1))
    if shape is None or starts is None or (axes is None and input_at(request.node, 3) is not None):
        return None
    touched = {axis % len(shape) for axis in (axes if axes is not None else range(len(starts)))}
    if request.window.axis in touched or shape[request.window.axis] != result[request.window.axis]:
        return None
    return Cut((request.window, *(WHOLE,) * (len(request.node.inputs) - 1)), request.window)


def _attention(request: Request) -> Cut | None:
    """Along the batch, the heads, or the queries; each head reads the mask of its own, each query its own row."""
    node, window, result = request.node, request.window, request.output_shape
    if request.output != 0 or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        return None
    if any(value is not None for value in node.inputs[4:]):
        return None
    if window.axis == 0:
        return Cut(_with_mask(request, (window,) * 3, 0, window.start, window.stop), window)
    if window.axis == len(result) - 2:
        if int_attribute(node, "is_causal", 0):
            return None  # Where the keys of a query end is counted from the first query.
        windows = _with_mask(request, (window, WHOLE, WHOLE), 2, window.start, window.stop)
        return Cut(windows, window)
    heads = _Heads.of(request)
    return None if heads is None else heads.cut(request)


class _Heads:
    """How the heads lie in the operands of an `Attention`: `[B, S, H * D]`, or `[B, H, S, D]`."""

    def __init__(self, flat: bool, queries: int, keys: int) -> None:
        self.flat, self.queries, self.keys = flat, queries, keys

    @classmethod
    def of(cls, request: Request) -> _Heads | None:
        q, k, v = (request.input_shape(index) for index in range(3))
        if q is None or k is None or v is None or not len(q) == len(k) == len(v):
            return None
        if len(q) == 4:
            return cls(False, q[1], k[1])
        queries, keys = (int_attribute(request.node, f"{name}_num_heads", 0) for name in ("q", "kv"))
        return cls(True, queries, keys) if len(q) == 3 and queries and keys else None

    def cut(self, request: Request) -> Cut | None:
        """The heads of a window, where it holds whole groups that share their keys."""
        window, axis = request.window, 2 if self.flat else 1
        group = self.queries // self.keys
        width = request.output_shape[2] // self.queries if self.flat else 1
        if window.axis != axis or window.start % (width * group) or window.stop % (width * group):
            return None
        first, last = window.start // width, window.stop // width
        kept = (first // group, last // group)
        windows = [self._operand(request, 0, (first, last), self.queries)]
        windows += [self._operand(request, index, kept, self.keys) for index in (1, 2)]
        attributes: dict[str, ir.Attr | None] = {}
        if self.flat:
            attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", last - first)
            attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", kept[1] - kept[0])
        return Cut(_with_mask(request, windows, 1, first, last), window, attributes)

    def _operand(self, request: Request, index: int, heads: tuple[int, int], count: int) -> Window:
        if not self.flat:
            return Window(1, *heads)
        shape = request.input_shape(index)
        assert shape is not None, "there are three operands"
        return Window(2, *(head * (shape[2] // count) for head in heads))


def _with_mask(request: Request, operands: Sequence[Window], axis: int, start: int, stop: int) -> tuple[Window, ...]:
    """The windows of query, key and value, and that of a mask, which is broadcast to `[B, H, S, T]`."""
    if len(request.node.inputs) == 3:
        return tuple(operands)
    mask = _broadcast(request.input_shape(3), 4, Window(axis, start, stop))
    return (*operands, mask, *(WHOLE,) * (len(request.node.inputs) - 4))


_RULES: Mapping[str, Rule] = {
    **WINDOW_RULES,
    "Attention": _attention,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Flatten": _view,
    "Gemm": _gemm,
    "GroupNormalization": _per_image,
    "InstanceNormalization": _per_image,
    "LayerNormalization": _along_the_last,
    "LogSoftmax": _along_the_last,
    "MatMul": _matmul,
    "RMSNormalization": _along_the_last,
    "Reshape": _view,
    "Slice": _slice,
    "Softmax": _along_the_last,
    "Split": _split,
    "Squeeze": _view,
    "Transpose": _transpose,
    "Unsqueeze": _view,
}
