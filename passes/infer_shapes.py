"""Write the types and shapes that can be inferred at every value.

1. At a value inside the graph, what is inferred is written over what stands there: files are often edited at the
inputs
   and left as they were inside. Sizes are symbolic (`"2*seq"`); one that depends on a size without a name is left
   open.
2. At an output of the model only what is missing is filled in: the interface stays as it was declared.
3. Inputs and initializers are not touched, except that an initializer without a type gets that of its tensor.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.analysis import analyse
from optimizer.ir.shape_info import Dims
from optimizer.ir.shapes import Shapes, is_anonymous
from optimizer.ir.symbolic import Dim
from optimizer.ir.walk import all_graphs
from optimizer.pass_manager import Pass

__all__ = ["InferShapes"]


@dataclasses.dataclass(frozen=True)
class InferShapes(Pass):
    """Writes types and shapes at every value."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infer and write."""
        shapes = analyse(Shapes, model)
        interface = frozenset(model.graph.outputs)
        modified = False
        for graph in all_graphs(model):
            for value in graph.initializers.values():
                _describe_initializer(value)
            for node in graph:
                for value in node.outputs:
                    if value in interface:
                        modified |= _complete(value, shapes)
                    elif value.name != "":
                        modified |= _write(value, shapes)
        return ir.passes.PassResult(model, modified)


def _write(value: ir.Value, shapes: Shapes) -> bool:
    type_, dims = shapes.type(value), shapes.dims(value)
    modified = False
    if type_ is not None and type_ != value.type:
        value.type = type_
        modified = True
    if dims is not None:
        shape = _shape(dims)
        if shape != value.shape:
            value.shape = shape
            modified = True
    return modified


def _complete(value: ir.Value, shapes: Shapes) -> bool:
    type_, dims = shapes.type(value), shapes.dims(value)
    modified = False
    if value.type is None and type_ is not None:
        value.type = type_
        modified = True
    if dims is None:
        return modified
    inferred = _shape(dims)
    if value.shape is None:
        value.shape = inferred
        return True
    if len(inferred) != len(value.shape):
        return modified
    merged = ir.Shape([_completed(old, new) for old, new in zip(value.shape, inferred, strict=True)])
    if merged != value.shape:
        value.shape = merged
        modified = True
    return modified


def _completed(old: int | ir.SymbolicDim, new: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    return new if isinstance(old, ir.SymbolicDim) and old.value is None else old


def _describe_initializer(value: ir.Value) -> None:
    """The tensor says it all; this is for readers that look at the value, and is no change to the model."""
    if value.const_value is not None and not value.is_graph_input():
        value.type = ir.TensorType(value.const_value.dtype)
        value.shape = ir.Shape(value.const_value.shape.numpy())


def _shape(dims: Dims) -> ir.Shape:
    return ir.Shape([_dim(dim) for dim in dims])


def _dim(dim: Dim) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return None if is_anonymous(dim) else str(dim)
