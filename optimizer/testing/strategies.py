"""Small, valid, well-typed graphs for hypothesis.

A graph is built node by node from *families* of operators, each of which knows what it can be applied to. The first
dimension of each input is the symbol `N`; every graph is valid for any `N` of at least 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

__all__ = ["FAMILIES", "models"]

Size = int | str
"""A number, or `"N"`."""


@dataclass(frozen=True)
class _Tensor:
    """A float32 value with its shape."""

    value: ir.Value
    shape: tuple[Size, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


class _Builder:
    """A graph that grows."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], opset: int) -> None:
        self.draw = draw
        self.opset = opset
        self.inputs: list[ir.Value] = []
        self.initializers: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.tensors: list[_Tensor] = []
        self._rng = np.random.default_rng(draw(st.integers(0, 9)))

    def choose(self, items: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(items))

    def flip(self) -> bool:
        return bool(self.draw(st.booleans()))

    def input(self) -> None:
        shape: tuple[Size, ...] = ("N", *self.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)))
        value = ir.val(f"x{len(self.inputs)}", ir.DataType.FLOAT, shape)
        self.inputs.append(value)
        self.tensors.append(_Tensor(value, shape))

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Any = None, outputs: int = 1
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=f"{op_type}_{len(self.nodes)}")
        for i, output in enumerate(node.outputs):
            output.name = f"v{len(self.nodes)}" + (f"_{i}" if i else "")
        self.nodes.append(node)
        return node

    def apply(self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Any = None) -> ir.Value:
        return self.node(op_type, inputs, attributes).outputs[0]

    def result(self, value: ir.Value, shape: Sequence[Size]) -> None:
        self.tensors.append(_Tensor(value, tuple(shape)))

    def constant(self, content: Any, dtype: Any = np.float32) -> ir.Value:
        """An initializer or a `Constant` node."""
        array = np.asarray(content, dtype)
        if self.flip():
            return self.apply("Constant", [], {"value": ir.tensor(array)})
        value = ir.Value(name=f"c{len(self.initializers)}", const_value=ir.tensor(array))
        value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
        self.initializers.append(value)
        return value

    def ints(self, *items: int) -> ir.Value:
        return self.constant(items, np.int64)

    def weights(self, *shape: int) -> ir.Value:
        return self.constant(self._rng.uniform(-1, 1, shape))

    def model(self) -> ir.Model:
        used = [tensor for tensor in self.tensors if tensor.value.producer() is not None]
        chosen = {used[-1].value: used[-1]}
        for tensor in self.draw(st.lists(st.sampled_from(used), max_size=2)):
            chosen[tensor.value] = tensor
        for value, tensor in chosen.items():
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(tensor.shape)
        graph = ir.Graph(
            self.inputs,
            list(chosen),
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": self.opset},
            name="graph",
        )
        return ir.Model(graph, ir_version=10)


# --- Families: each applies one or a few nodes to a tensor, or returns without doing anything when it does not fit ---


def _unary(b: _Builder, x: _Tensor) -> None:
    b.result(b.apply(b.choose(["Relu", "Tanh", "Neg", "Sigmoid", "Abs"]), [x.value]), x.shape)


def _binary(b: _Builder, x: _Tensor) -> None:
    same = [tensor for tensor in b.tensors if tensor.shape == x.shape]
    b.result(b.apply(b.choose(["Add", "Mul", "Sub"]), [x.value, b.choose(same).value]), x.shape)


def _neutral(b: _Builder, x: _Tensor) -> None:
    op_type, element = b.choose([("Add", 0.0), ("Add", -0.0), ("Sub", 0.0), ("Mul", 1.0), ("Div", 1.0), ("Mul", 2.0)])
    shape = b.choose([(), (1,), x.shape[-1:] if isinstance(x.shape[-1], int) else (1,)] if x.shape else [()])
    operands = [x.value, b.constant(np.full(shape, element))]
    b.result(b.apply(op_type, operands[:: -1 if op_type in ("Add", "Mul") and b.flip() else 1]), x.shape)


def _identity(b: _Builder, x: _Tensor) -> None:
    op_type = b.choose(["Identity", "Dropout", "Cast", "Pad", "Max", "Slice"])
    inputs: list[ir.Value | None] = [x.value]
    if op_type == "Pad":
        inputs.append(b.ints(*[0] * 2 * x.rank))
    if op_type == "Slice":
        inputs += [b.ints(0), b.ints(2**62), b.ints(0)]
        if not x.shape:
            return
    b.result(b.apply(op_type, inputs, {"to": 1} if op_type == "Cast" else None), x.shape)


def _casts(b: _Builder, x: _Tensor) -> None:
    wide = b.apply("Cast", [x.value], {"to": 11})
    b.result(b.apply("Cast", [wide], {"to": 1}), x.shape)


def _transpose(b: _Builder, x: _Tensor) -> None:
    order = b.draw(st.permutations(range(x.rank)))
    b.result(b.apply("Transpose", [x.value], {"perm": list(order)} if x.rank else None), [x.shape[a] for a in order])


def _unsqueeze(b: _Builder, x: _Tensor) -> None:
    axis = b.draw(st.integers(0, x.rank))
    b.result(b.apply("Unsqueeze", [x.value, b.ints(axis)]), [*x.shape[:axis], 1, *x.shape[axis:]])


def _squeeze(b: _Builder, x: _Tensor) -> None:
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    if ones:
        axis = b.choose(ones)
        b.result(b.apply("Squeeze", [x.value, b.ints(axis)]), [*x.shape[:axis], *x.shape[axis + 1 :]])


def _reshape(b: _Builder, x: _Tensor) -> None:
    """To `[N, rest]`, with 0, with -1, or with a shape that is computed."""
    if not x.shape or x.shape[0] != "N" or "N" in x.shape[1:]:
        return
    rest = math.prod(size for size in x.shape[1:] if isinstance(size, int))
    how = b.choose(["copy", "infer", "compute", "flatten"])
    if how == "flatten":
        b.result(b.apply("Flatten", [x.value]), ["N", rest])
        return
    shape = b.ints(0, rest) if how == "copy" else b.ints(-1, rest)
    if how == "compute":
        size = b.apply("Gather", [b.apply("Shape", [x.value]), b.constant(0, np.int64)])
        shape = b.apply("Concat", [b.apply("Unsqueeze", [size, b.ints(0)]), b.ints(rest)], {"axis": 0})
    b.result(b.apply("Reshape", [x.value, shape]), ["N", rest])


def _expand(b: _Builder, x: _Tensor) -> None:
    b.result(b.apply("Expand", [x.value, b.apply("Shape", [x.value])]), x.shape)


def _matmul(b: _Builder, x: _Tensor) -> None:
    if x.rank < 2 or not isinstance(x.shape[-1], int):
        return
    width = b.choose([1, 2, 3])
    y = b.apply("MatMul", [x.value, b.weights(x.shape[-1], width)])
    if b.flip():
        y = b.apply(b.choose(["Add", "Mul"]), [y, b.weights(width)])
    b.result(y, [*x.shape[:-1], width])


def _gemm(b: _Builder, x: _Tensor) -> None:
    if x.rank != 2 or not isinstance(x.shape[1], int):
        return
    width, transposed = b.choose([2, 3]), b.flip()
    weight = b.weights(width, x.shape[1]) if transposed else b.weights(x.shape[1], width)
    y = b.apply("Gemm", [x.value, weight, *([b.weights(width)] if b.flip() else [])], {"transB": int(transposed)})
    b.result(b.apply(b.choose(["Add", "Mul", "Sub"]), [y, b.weights(width)]), [x.shape[0], width])


def _conv(b: _Builder, x: _Tensor) -> None:
    if x.rank != 4 or x.shape[0] != "N" or not isinstance(x.shape[1], int):
        return
    out = b.choose([1, 2])
    y = b.apply("Conv", [x.value, b.weights(out, x.shape[1], 1, 1), *([b.weights(out)] if b.flip() else [])])
    if b.flip():
        statistics = [b.weights(out), b.weights(out), b.weights(out), b.constant(np.full(out, 0.5))]
        y = b.apply("BatchNormalization", [y, *statistics])
    else:
        y = b.apply(b.choose(["Add", "Mul"]), [y, b.weights(out, 1, 1)])
    b.result(y, ["N", out, *x.shape[2:]])


def _concat_split(b: _Builder, x: _Tensor) -> None:
    axes = [axis for axis, size in enumerate(x.shape) if isinstance(size, int) and size % 2 == 0]
    if not axes:
        return
    axis = b.choose(axes)
    half = int(x.shape[axis]) // 2
    parts = b.node("Split", [x.value, b.ints(half, half)], {"axis": axis}, outputs=2).outputs
    b.result(b.apply("Concat", list(parts[:: b.choose([1, -1])]), {"axis": axis}), x.shape)


def _constants(b: _Builder, x: _Tensor) -> None:
    left = b.constant(b.draw(st.lists(st.integers(-2, 2), min_size=1, max_size=1)))
    value = b.apply(b.choose(["Add", "Mul"]), [left, b.apply("Neg", [b.constant([3.0])])])
    b.result(b.apply("Mul", [x.value, value]), x.shape if x.shape else (1,))


def _repeat(b: _Builder, x: _Tensor) -> None:
    """Compute the same again."""
    node = x.value.producer()
    if node is not None and len(node.outputs) == 1 and node.op_type not in ("Constant", "If"):
        b.result(b.apply(node.op_type, node.inputs, dict(node.attributes)), x.shape)


def _if(b: _Builder, x: _Tensor) -> None:
    producer = x.value.producer()
    if producer is not None and producer.op_type == "Cast":
        # ONNX Runtime 1.31.1 drops a Cast to the same type even when a subgraph uses its result, and then fails.
        return
    branches = {}
    for name, op_type in (("then_branch", "Relu"), ("else_branch", "Neg")):
        inner = ir.node(op_type, [x.value])
        inner.outputs[0].name = f"{name}_{len(b.nodes)}"
        branches[name] = ir.Graph([], inner.outputs, nodes=[inner], name=name)
    b.result(b.apply("If", [b.constant(b.flip(), np.bool_)], branches), x.shape)


FAMILIES: dict[str, Callable[[_Builder, _Tensor], None]] = {
    "binary": _binary,
    "casts": _casts,
    "concat-split": _concat_split,
    "constants": _constants,
    "conv": _conv,
    "expand": _expand,
    "gemm": _gemm,
    "identity": _identity,
    "if": _if,
    "matmul": _matmul,
    "neutral": _neutral,
    "repeat": _repeat,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "unary": _unary,
    "unsqueeze": _unsqueeze,
}
"""The families by name."""


@st.composite
def models(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    *,
    families: Sequence[str] = tuple(FAMILIES),
    max_steps: int = 8,
    opsets: Sequence[int] = (13, 17, 21, 23),
) -> ir.Model:
    """Models with one or two inputs, values that are used several times, and outputs in the middle.

    Args:
        draw: Given by hypothesis.
        families: What to build from; see `FAMILIES`.
        max_steps: How often a family is applied at most.
        opsets: Versions of the standard operators to choose from, 13 or later.
    """
    builder = _Builder(draw, draw(st.sampled_from(opsets)))
    for _ in range(draw(st.integers(1, 2))):
        builder.input()
    for name in draw(st.lists(st.sampled_from(families), min_size=1, max_size=max_steps)):
        # Mostly what was made last, so that chains grow.
        tensor = builder.tensors[-1] if builder.flip() else builder.choose(builder.tensors)
        FAMILIES[name](builder, tensor)
    _unary(builder, builder.tensors[-1])
    return builder.model()
