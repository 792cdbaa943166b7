"""A graph that grows node by node, by what hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

__all__ = ["FLOATS", "Builder", "Size", "Tensor"]

Size = int | str
"""A number, or `"N"`."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class Tensor:
    """A value with what is known of it.

    Attributes:
        value: In the graph.
        shape: Numbers, and `"N"`.
        dtype: Its type.
    """

    value: ir.Value
    shape: tuple[Size, ...]
    dtype: ir.DataType = ir.DataType.FLOAT

    @property
    def rank(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype in FLOATS

    @property
    def is_number(self) -> bool:
        """Whether one can calculate with it."""
        return self.dtype != ir.DataType.BOOL

    @property
    def is_single(self) -> bool:
        """Whether it holds float32, the type that every runtime computes everything in."""
        return self.dtype == ir.DataType.FLOAT


class Builder:
    """A graph that grows.

    Attributes:
        opset: The version of the standard operators.
        tensors: What there is to be used.
        functions: Local functions that the graph calls.

    Args:
        draw: Given by hypothesis.
        opset: The version of the standard operators.
    """

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], opset: int) -> None:
        self.draw = draw
        self.opset = opset
        self.inputs: list[ir.Value] = []
        self.initializers: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.tensors: list[Tensor] = []
        self.functions: dict[ir.OperatorIdentifier, ir.Function] = {}
        self._rng = np.random.default_rng(draw(st.integers(0, 9)))

    def choose(self, items: Sequence[Any]) -> Any:
        """One of the items; the first is the simplest."""
        return self.draw(st.sampled_from(items))

    def flip(self) -> bool:
        """True or false."""
        return bool(self.draw(st.booleans()))

    def input(self, dtypes: Sequence[ir.DataType], static: bool) -> None:
        """Add an input of the graph, of rank 2 to 4."""
        first: Size = 2 if static else "N"
        shape = (first, *self.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=3)))
        dtype = self.choose(dtypes)
        value = ir.val(f"x{len(self.inputs)}", dtype, shape)
        self.inputs.append(value)
        self.tensors.append(Tensor(value, shape, dtype))

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Any = None,
        outputs: int = 1,
        domain: str = "",
    ) -> ir.Node:
        """Add a node."""
        name = f"{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes, num_outputs=outputs, name=name, domain=domain)
        for i, output in enumerate(node.outputs):
            output.name = f"v{len(self.nodes)}" + (f"_{i}" if i else "")
        self.nodes.append(node)
        return node

    def apply(self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Any = None) -> ir.Value:
        """Add a node with one output."""
        return self.node(op_type, inputs, attributes).outputs[0]

    def result(self, value: ir.Value, shape: Sequence[Size], dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        """Let later families use a value."""
        self.tensors.append(Tensor(value, tuple(shape), dtype))

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
        """A constant vector of integers, as shapes and axes are given."""
        return self.constant(items, np.int64)

    def weights(self, *shape: int, dtype: Any = np.float32) -> ir.Value:
        """A constant of random numbers between -1 and 1."""
        return self.constant(self._rng.uniform(-1, 1, shape), dtype)

    def model(self) -> ir.Model:
        """The model so far; its last value is an output, and so are up to two others."""
        used = [tensor for tensor in self.tensors if tensor.value.producer() is not None]
        chosen = {used[-1].value: used[-1]}
        for tensor in self.draw(st.lists(st.sampled_from(used), max_size=2)):
            chosen[tensor.value] = tensor
        for value, tensor in chosen.items():
            value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
        graph = ir.Graph(
            self.inputs,
            list(chosen),
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": self.opset, **{function.domain: 1 for function in self.functions.values()}},
            name="graph",
        )
        return ir.Model(graph, ir_version=10, functions=list(self.functions.values()))
