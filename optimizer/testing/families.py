"""Families of element-wise operators, reductions and movements.

Each applies one or a few nodes to a tensor, or returns without doing anything where it does not fit.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from optimizer.testing.builder import Builder, Tensor

_AXES_AS_INPUT = 18
"""From this opset on all reductions take their axes as an input; `ReduceSum` did before."""


def unary(b: Builder, x: Tensor) -> None:
    """A function of each element."""
    if not x.is_number:
        op_type = "Not"
    else:
        op_type = b.choose(["Relu", "Tanh", "Neg", "Sigmoid", "Abs"] if x.is_float else ["Neg", "Abs"])
    b.result(b.apply(op_type, [x.value]), x.shape, x.dtype)


def binary(b: Builder, x: Tensor) -> None:
    """A function of two elements, of tensors of the same shape and type."""
    same = [tensor for tensor in b.tensors if (tensor.shape, tensor.dtype) == (x.shape, x.dtype)]
    op_type = b.choose(["Add", "Mul", "Sub"] if x.is_number else ["And", "Or", "Xor"])
    b.result(b.apply(op_type, [x.value, b.choose(same).value]), x.shape, x.dtype)


def neutral(b: Builder, x: Tensor) -> None:
    """An operation that changes nothing, or nearly so."""
    if not x.is_number:
        return
    op_type, element = b.choose([("Add", 0.0), ("Add", -0.0), ("Sub", 0.0), ("Mul", 1.0), ("Div", 1.0), ("Mul", 2.0)])
    shape = b.choose([(), (1,), x.shape[-1:] if isinstance(x.shape[-1], int) else (1,)] if x.shape else [()])
    operands = [x.value, b.constant(np.full(shape, element), x.dtype.numpy())]
    turned = -1 if op_type in ("Add", "Mul") and b.flip() else 1
    b.result(b.apply(op_type, operands[::turned]), x.shape, x.dtype)


def identity(b: Builder, x: Tensor) -> None:
    """An operator that does nothing with these attributes."""
    op_type = b.choose(["Identity", "Dropout", "Cast", "Pad", "Max", "Slice"])
    if (op_type == "Dropout" and not x.is_float) or (op_type == "Max" and not x.is_number):
        return
    inputs: list[ir.Value | None] = [x.value]
    if op_type == "Pad":
        inputs.append(b.ints(*[0] * 2 * x.rank))
    if op_type == "Slice":
        inputs += [b.ints(0), b.ints(2**62), b.ints(0)]
        if not x.shape:
            return
    b.result(b.apply(op_type, inputs, {"to": int(x.dtype)} if op_type == "Cast" else None), x.shape, x.dtype)


def casts(b: Builder, x: Tensor) -> None:
    """There and back, through a type that holds all numbers of this one."""
    wide = ir.DataType.DOUBLE if x.is_float else ir.DataType.INT64
    inner = b.apply("Cast", [x.value], {"to": int(wide)})
    b.result(b.apply("Cast", [inner], {"to": int(x.dtype)}), x.shape, x.dtype)


def clip(b: Builder, x: Tensor) -> None:
    """Limits on one side or on both."""
    if not x.is_number:
        return
    low, high = (b.constant(limit, x.dtype.numpy()) if b.flip() else None for limit in (-1, 2))
    b.result(b.apply("Clip", [x.value, low, high]), x.shape, x.dtype)


def compare(b: Builder, x: Tensor) -> None:
    """A choice by the sign of an input of the graph: that of a computed value may be a matter of rounding."""
    if not x.value.is_graph_input() and x.value.producer() is not None:
        return
    if not x.is_number:
        b.result(b.apply("Where", [x.value, x.value, b.apply("Not", [x.value])]), x.shape, x.dtype)
        return
    zero = b.constant(0, x.dtype.numpy())
    chosen = b.apply(b.choose(["Greater", "Less", "GreaterOrEqual", "Equal"]), [x.value, zero])
    same = [tensor for tensor in b.tensors if (tensor.shape, tensor.dtype) == (x.shape, x.dtype)]
    if b.flip():
        b.result(chosen, x.shape, ir.DataType.BOOL)
    b.result(b.apply("Where", [chosen, x.value, b.choose(same).value]), x.shape, x.dtype)


def reduce(b: Builder, x: Tensor) -> None:
    """One axis becomes 1, or goes."""
    if not x.shape or not x.is_number:
        return
    axis, keep = b.draw(st.integers(0, x.rank - 1)), b.flip()
    op_type = b.choose(["ReduceSum", "ReduceMean", "ReduceMax"] if x.is_float else ["ReduceSum", "ReduceMax"])
    if op_type == "ReduceSum" or b.opset >= _AXES_AS_INPUT:
        y = b.apply(op_type, [x.value, b.ints(axis)], {"keepdims": int(keep)})
    else:
        y = b.apply(op_type, [x.value], {"axes": [axis], "keepdims": int(keep)})
    b.result(y, [*x.shape[:axis], *([1] if keep else []), *x.shape[axis + 1 :]], x.dtype)


def softmax(b: Builder, x: Tensor) -> None:
    """Along an axis."""
    if x.shape and x.is_float:
        axis = b.draw(st.integers(-x.rank, x.rank - 1))
        b.result(b.apply(b.choose(["Softmax", "LogSoftmax"]), [x.value], {"axis": axis}), x.shape, x.dtype)


def transpose(b: Builder, x: Tensor) -> None:
    """The axes in another order."""
    order = b.draw(st.permutations(range(x.rank)))
    y = b.apply("Transpose", [x.value], {"perm": list(order)} if x.rank else None)
    b.result(y, [x.shape[a] for a in order], x.dtype)


def unsqueeze(b: Builder, x: Tensor) -> None:
    """One axis more."""
    axis = b.draw(st.integers(0, x.rank))
    y = b.apply("Unsqueeze", [x.value, b.ints(axis)])
    b.result(y, [*x.shape[:axis], 1, *x.shape[axis:]], x.dtype)


def squeeze(b: Builder, x: Tensor) -> None:
    """One axis less."""
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    if ones:
        axis = b.choose(ones)
        y = b.apply("Squeeze", [x.value, b.ints(axis)])
        b.result(y, [*x.shape[:axis], *x.shape[axis + 1 :]], x.dtype)


def reshape(b: Builder, x: Tensor) -> None:
    """To `[N, rest]`, with 0, with -1, or with a shape that is computed."""
    if not x.shape or x.shape[0] != "N" or "N" in x.shape[1:]:
        return
    rest = math.prod(size for size in x.shape[1:] if isinstance(size, int))
    how = b.choose(["copy", "infer", "compute", "flatten"])
    if how == "flatten":
        b.result(b.apply("Flatten", [x.value]), ["N", rest], x.dtype)
        return
    shape = b.ints(0, rest) if how == "copy" else b.ints(-1, rest)
    if how == "compute":
        size = b.apply("Gather", [b.apply("Shape", [x.value]), b.constant(0, np.int64)])
        shape = b.apply("Concat", [b.apply("Unsqueeze", [size, b.ints(0)]), b.ints(rest)], {"axis": 0})
    b.result(b.apply("Reshape", [x.value, shape]), ["N", rest], x.dtype)


def expand(b: Builder, x: Tensor) -> None:
    """To its own shape."""
    b.result(b.apply("Expand", [x.value, b.apply("Shape", [x.value])]), x.shape, x.dtype)


def gather(b: Builder, x: Tensor) -> None:
    """Some of an axis, in another order, or one of it."""
    axes = [axis for axis, size in enumerate(x.shape) if isinstance(size, int)]
    if not axes:
        return
    axis = b.choose(axes)
    size = int(x.shape[axis])
    if b.flip():
        y = b.apply("Gather", [x.value, b.constant(b.draw(st.integers(-size, size - 1)), np.int64)], {"axis": axis})
        b.result(y, [*x.shape[:axis], *x.shape[axis + 1 :]], x.dtype)
    else:
        indices = b.draw(st.lists(st.integers(-size, size - 1), min_size=1, max_size=3))
        y = b.apply("Gather", [x.value, b.ints(*indices)], {"axis": axis})
        b.result(y, [*x.shape[:axis], len(indices), *x.shape[axis + 1 :]], x.dtype)


def slice_(b: Builder, x: Tensor) -> None:
    """Part of an axis, forwards or backwards."""
    axes = [axis for axis, size in enumerate(x.shape) if isinstance(size, int)]
    if not axes:
        return
    axis = b.choose(axes)
    size = int(x.shape[axis])
    begin, end, step = b.choose([(0, 1, 1), (-1, -size - 1, -1), (0, size, 2), (size // 2, 2**31, 1)])
    length = len(range(size)[slice(begin, None if end < -size else end, step)])
    y = b.apply("Slice", [x.value, b.ints(begin), b.ints(end), b.ints(axis), b.ints(step)])
    b.result(y, [*x.shape[:axis], length, *x.shape[axis + 1 :]], x.dtype)


def concat_split(b: Builder, x: Tensor) -> None:
    """Two halves put together again, in this order or the other."""
    axes = [axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size % 2 == 0]
    if not axes:
        return
    axis = b.choose(axes)
    half = int(x.shape[axis]) // 2
    parts = b.node("Split", [x.value, b.ints(half, half)], {"axis": axis}, outputs=2).outputs
    b.result(b.apply("Concat", list(parts[:: b.choose([1, -1])]), {"axis": axis}), x.shape, x.dtype)


def constants(b: Builder, x: Tensor) -> None:
    """A product with something that can be computed before the run."""
    if not x.is_number:
        return
    dtype = x.dtype.numpy()
    left = b.constant(b.draw(st.lists(st.integers(-2, 2), min_size=1, max_size=1)), dtype)
    value = b.apply(b.choose(["Add", "Mul"]), [left, b.apply("Neg", [b.constant([3], dtype)])])
    b.result(b.apply("Mul", [x.value, value]), x.shape if x.shape else (1,), x.dtype)


def repeat(b: Builder, x: Tensor) -> None:
    """Compute the same again."""
    node = x.value.producer()
    if node is None or len(node.outputs) != 1 or node.op_type in ("Constant", "If", "Loop") or node.domain:
        return
    b.result(b.apply(node.op_type, node.inputs, dict(node.attributes)), x.shape, x.dtype)
