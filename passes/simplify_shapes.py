"""Do the arithmetic on shapes that exporters leave in the graph, symbolically.

The elements of every small integer tensor are followed through Shape, Gather, Slice, Concat, Cast, Mul, Where and
their kind (`optimizer.ir.data_rules`), with symbolic dimensions as symbols. Then

1. a tensor whose elements are all known numbers becomes a constant;
2. a tensor whose elements are the same symbols as those of an earlier one is replaced by that one, so everything ends
at
   the `Shape` of an input;
3. the second input of a `Reshape` becomes a constant with 0 and -1, where that says the same
(`optimizer.ir.reshape`); 4. the second input of an `Expand` becomes a constant, where its symbols are sizes that the
first input has already: there
   a 1 says the same.

5. a `Reshape` by a constant without a 0 loses its `allowzero`, which means nothing there.

What feeds the replaced nodes is left to `remove-unused`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import ChainMap
from collections.abc import Hashable

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import constant, input_at, is_op, known_ints
from optimizer.ir.reshape import reshape_target
from optimizer.pass_manager import Pass

__all__ = ["SimplifyShapes"]

_Tables = dict[ir.Graph, ChainMap[Hashable, ir.Value]]


@dataclasses.dataclass(frozen=True)
class SimplifyShapes(Pass):
    """Simplifies the computation of shapes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Simplify in topological order, so that each tensor meets the first one with the same elements."""
        tables: _Tables = {}
        return rewrite_nodes(model, functools.partial(_simplify, tables))


def _simplify(tables: _Tables, editor: Editor, scope: Scope, node: ir.Node) -> None:
    if is_op(node, "Reshape") and _is_computed(input_at(node, 1)):
        _simplify_reshape(editor, scope, node)
    elif is_op(node, "Reshape") and "allowzero" in node.attributes and 0 not in (known_ints(input_at(node, 1)) or (0,)):
        del node.attributes["allowzero"]
        editor.modified = True
    elif is_op(node, "Expand") and _is_computed(input_at(node, 1)):
        _simplify_expand(editor, scope, node)
    elif len(node.outputs) == 1 and not is_op(node, "Constant"):
        _simplify_data(tables, editor, scope, node)


def _simplify_data(tables: _Tables, editor: Editor, scope: Scope, node: ir.Node) -> None:
    value = node.outputs[0]
    data, dims, dtype = editor.shapes.data(value), editor.shapes.dims(value), editor.shapes.dtype(value)
    if data is None or dims is None or dtype is None:
        return
    if all(isinstance(item, int) for item in data):
        shape = (len(data),) * len(dims)
        editor.fold(scope, node, [np.array(data, dtype.numpy()).reshape(shape)])
        return
    table = _table(tables, scope)
    first = table.setdefault((dtype, len(dims), data), value)
    if first is not value and editor.bypass(node, first):
        producer = first.producer()
        if producer is not None:
            inherit(producer, [node])


def _simplify_reshape(editor: Editor, scope: Scope, node: ir.Node) -> None:
    source, shape = node.inputs[0], node.inputs[1]
    data = editor.shapes.data(shape)
    if data is None:
        return
    wanted, given = editor.shapes.dims(node.outputs[0]), editor.shapes.dims(source)
    target = reshape_target(wanted, given, may_mix=-1 in data)
    if target is None:
        return
    node.attributes.pop("allowzero", None)
    node.replace_input_with(1, _shape_constant(editor, scope, node, target))


def _simplify_expand(editor: Editor, scope: Scope, node: ir.Node) -> None:
    given, wanted = editor.shapes.dims(node.inputs[0]), editor.shapes.data(node.inputs[1])
    if given is None or wanted is None:
        return
    padded = (1,) * (len(wanted) - len(given)) + given[max(0, len(given) - len(wanted)) :]
    target = tuple(1 if dim == size else dim for dim, size in zip(wanted, padded, strict=True))
    plain = tuple(dim for dim in target if isinstance(dim, int) and dim >= 0)
    if len(plain) == len(target):
        node.replace_input_with(1, _shape_constant(editor, scope, node, plain))


def _shape_constant(editor: Editor, scope: Scope, node: ir.Node, target: tuple[int, ...]) -> ir.Value:
    return editor.constant(scope, node, f"{node.outputs[0].name}_shape", np.array(target, np.int64))


def _table(tables: _Tables, scope: Scope) -> ChainMap[Hashable, ir.Value]:
    """The first value with each content; those around a subgraph stand before it, since it comes before its node."""
    if scope.graph not in tables:
        tables[scope.graph] = _table(tables, scope.parent).new_child() if scope.parent else ChainMap()
    return tables[scope.graph]


def _is_computed(shape: ir.Value | None) -> bool:
    return shape is not None and constant(shape) is None
