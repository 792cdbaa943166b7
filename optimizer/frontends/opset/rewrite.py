"""What an adapter works with: one node, its attributes, and new nodes placed around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optimizer.errors import UnsupportedError
from optimizer.executable import Array

__all__ = ["Rewrite"]

_CONSTANT_ATTRIBUTE = {
    ir.AttributeType.INT: "value_int",
    ir.AttributeType.INTS: "value_ints",
    ir.AttributeType.FLOAT: "value_float",
    ir.AttributeType.FLOATS: "value_floats",
}


class Rewrite:
    """A node of an old opset on its way to the canonical one.

    Attributes:
        node: The node; adapters change it in place.
        version: The opset that it was written for.
    """

    def __init__(self, node: ir.Node, version: int) -> None:
        self.node = node
        self.version = version

    def unsupported(self, reason: str) -> UnsupportedError:
        """The error to raise for a node that has no equal in the canonical opset."""
        return UnsupportedError(f"{self.node.op_type} of opset {self.version}: {reason}", node=self.node.name or "")

    def drop(self, *names: str) -> None:
        """Remove attributes, if they are there."""
        for name in names:
            self.node.attributes.pop(name, None)

    def int_attribute(self, name: str, default: int) -> int:
        """An integer attribute, whose value must be known."""
        attr = self.node.attributes.get(name)
        return default if attr is None else self._known(attr).as_int()

    def string_attribute(self, name: str, default: str) -> str:
        """A string attribute, whose value must be known."""
        attr = self.node.attributes.get(name)
        return default if attr is None else self._known(attr).as_string()

    def update(self, **attributes: int | float | str | Sequence[int]) -> None:
        """Set attributes."""
        self.node.attributes.update(
            {name: ir.convenience.convert_attribute(name, value) for name, value in attributes.items()}
        )

    def input(self, index: int) -> ir.Value | None:
        """The input, or `None` when it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def set_inputs(self, *inputs: ir.Value | None) -> None:
        """Replace all inputs."""
        self.node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            self.node.replace_input_with(index, value)

    def attribute_as_input(self, name: str) -> ir.Value | None:
        """Take an attribute away and give its value as a constant; `None` when the attribute is not there.

        A reference to a parameter of the enclosing function is kept as one.
        """
        attr = self.node.attributes.pop(name, None)
        if attr is None:
            return None
        target = _CONSTANT_ATTRIBUTE[attr.type]
        if attr.is_ref():
            moved = ir.RefAttr(target, attr.ref_attr_name, attr.type)  # type: ignore[arg-type]
        else:
            moved = ir.Attr(target, attr.type, attr.value)
        return self._insert(ir.Node("", "Constant", [], [moved]))

    def like(self, value: ir.Value | None, x: ir.Value | None) -> ir.Value | None:
        """A float32 constant in the element type of `x`; `None` stays `None`."""
        if value is None or x is None or x.dtype == ir.DataType.FLOAT:
            return value
        if x.dtype is None:
            return self.before("CastLike", value, x)
        return self.before("Cast", value, to=int(x.dtype))

    def constant(self, array: Array) -> ir.Value:
        """A constant, placed before the node."""
        return self.before("Constant", value=ir.tensor(array))

    def ints(self, *values: int) -> ir.Value:
        """A constant vector of `int64`, placed before the node."""
        return self.constant(np.array(values, dtype=np.int64))

    def before(self, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        """A new node with one output, placed before the node."""
        attrs = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]  # type: ignore[arg-type]
        return self._insert(ir.Node("", op_type, inputs, attrs))

    def after(self, output: int, op_type: str, *inputs: ir.Value, **attributes: object) -> None:
        """Put a new node between an output and its users; the output is the new node's first input."""
        old = self.node.outputs[output]
        attrs = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]  # type: ignore[arg-type]
        new = ir.Node("", op_type, [old, *inputs], attrs)
        self.node.append(new)
        replaced, name = new.outputs[0], old.name
        replaced.type, replaced.shape = old.type, old.shape
        old.shape = None
        users = [usage for usage in old.uses() if usage.node is not new]
        for usage in users:
            usage.node.replace_input_with(usage.idx, replaced)
        graph = old.graph
        if graph is not None:
            for index, value in enumerate(graph.outputs):
                if value is old:
                    graph.outputs[index] = replaced
        old.name = f"{name}_before_{op_type.lower()}"
        replaced.name = name

    def _insert(self, node: ir.Node) -> ir.Value:
        self.node.prepend(node)
        return node.outputs[0]

    def _known(self, attr: ir.Attr) -> ir.Attr:
        if attr.is_ref():
            raise self.unsupported(
                f"attribute {attr.name!r} is a parameter of a function, whose value is not known: inline the function"
            )
        return attr
