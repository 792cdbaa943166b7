"""Let a product of flattened rows work on the rows as they are.

    Reshape(Gemm(Reshape(x, [-1, K]), w, b), [..., N])  ->  Add(MatMul(x, w), b),  and without b  MatMul(x, w)
    Reshape(MatMul(Reshape(x, [-1, K]), w), [..., N])   ->  MatMul(x, w)

`MatMul` multiplies the last axis of any number of rows by a matrix. It is done when

1. the last shape is that of `x` with `N` in place of `K`, and the first one joins all axes but the last;
2. nothing else needs the product;
3. Gemm neither turns `x` nor scales; where it turns `w`, that is constant;
4. `b` is one row, or one number for each column.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import producer, remove_dead
from optimizer.ir.query import array, float_attribute, input_at, int_attribute, is_op, only_user
from optimizer.pass_manager import Pass

__all__ = ["UnflattenMatmul"]


@dataclasses.dataclass(frozen=True)
class UnflattenMatmul(Pass):
    """Removes the reshapes around a product of flattened rows."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite wherever it can be done."""
        return rewrite_nodes(model, _unflatten, ("Reshape",))


def _unflatten(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "Reshape"):
        return
    product = producer(node.inputs[0], node.graph, "Gemm", "MatMul")
    if product is None or only_user(product.outputs[0]) is not node:
        return
    flatten = producer(product.inputs[0], node.graph, "Reshape", "Flatten")
    if flatten is None or flatten.inputs[0] is None or not _joins_rows(editor, flatten, node):
        return
    if product.op_type == "Gemm" and not _is_plain(editor, product):
        return
    _replace(editor, scope, node, product, flatten)


def _joins_rows(editor: Editor, flatten: ir.Node, last: ir.Node) -> bool:
    x, rows, wanted = (editor.shapes.dims(value) for value in (flatten.inputs[0], flatten.outputs[0], last.outputs[0]))
    product = editor.shapes.dims(last.inputs[0])
    if x is None or rows is None or wanted is None or product is None or len(x) < 2:
        return False
    joined = len(rows) == 2 and len(product) == 2 and rows[1] == x[-1]
    return joined and wanted[:-1] == x[:-1] and wanted[-1] == product[-1] and len(wanted) == len(x)


def _is_plain(editor: Editor, gemm: ir.Node) -> bool:
    if int_attribute(gemm, "transA", 0) or float_attribute(gemm, "alpha", 1.0) != 1:
        return False
    if int_attribute(gemm, "transB", 0) and array(input_at(gemm, 1)) is None:
        return False
    bias, width = input_at(gemm, 2), (editor.shapes.dims(gemm.outputs[0]) or (None,))[-1]
    if bias is None:
        return True
    dims = editor.shapes.dims(bias)
    is_row = dims is not None and (len(dims) < 2 or dims[0] == 1) and (not dims or dims[-1] in (1, width))
    return is_row and float_attribute(gemm, "beta", 1.0) == 1


def _replace(editor: Editor, scope: Scope, node: ir.Node, product: ir.Node, flatten: ir.Node) -> None:
    weight, bias = input_at(product, 1), input_at(product, 2)
    assert weight is not None, "a product has two factors"
    if int_attribute(product, "transB", 0):
        elements = array(weight)
        assert elements is not None, "it has been checked"
        # A view: a large model would otherwise be held twice, once each way round.
        weight = editor.constant(scope, product, weight.name, np.swapaxes(elements, 0, 1))
    matmul = ir.node("MatMul", [flatten.inputs[0], weight])
    if bias is None:
        editor.substitute(node, matmul, [product, flatten])
    else:
        matmul.outputs[0].name = product.outputs[0].name
        editor.substitute(product, matmul, [flatten])
        editor.substitute(node, ir.node("Add", [matmul.outputs[0], bias]), [flatten])
    remove_dead(editor, [product, flatten])
