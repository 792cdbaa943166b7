"""Fuse the product of two matrices with what stands around it into `Gemm`.

1. Add(MatMul(a, b), c) -> Gemm(a, b, c)
2. Gemm(Transpose(a), b, c) -> Gemm(a, b, c) with transA turned round; likewise for b

It is done when

1. `a` and `b` have two axes, and their type is floating point;
2. nothing else needs the product;
3. `c` does not stretch the product: the sum has its shape.

A product of more axes stays: it would have to be flattened first, which costs two nodes.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import either_order, producer, remove_dead
from optimizer.ir.provenance import inherit
from optimizer.ir.query import FLOATS, input_at, int_attribute, ints_attribute, is_op, only_user
from optimizer.pass_manager import Pass

__all__ = ["FuseGemm"]


@dataclasses.dataclass(frozen=True)
class FuseGemm(Pass):
    """Makes `Gemm` of a product of matrices and what is added to it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done."""
        return rewrite_nodes(model, _fuse, ("Add", "Gemm"))


def _fuse(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if is_op(node, "Add"):
        _fuse_sum(editor, scope, node)
    elif is_op(node, "Gemm"):
        _fuse_transposes(editor, node)


def _fuse_sum(editor: Editor, scope: Scope, node: ir.Node) -> None:
    # Before opset 7 the summand had to be told to broadcast, and before 11 it could not be left out.
    if scope.opset < 11:
        return
    for product, summand in either_order(node):
        matmul = producer(product, node.graph, "MatMul")
        if matmul is None or only_user(product) is not node or not _are_matrices(editor, matmul):
            continue
        dims = editor.shapes.dims(product)
        if dims is None or dims != editor.shapes.dims(node.outputs[0]) or editor.shapes.dims(summand) is None:
            continue
        gemm = ir.node("Gemm", [*matmul.inputs, summand])
        editor.substitute(node, gemm, [matmul])
        remove_dead(editor, [matmul])
        _fuse_transposes(editor, gemm)
        return


def _are_matrices(editor: Editor, matmul: ir.Node) -> bool:
    ranks = [editor.shapes.dims(value) for value in matmul.inputs]
    return (
        all(dims is not None and len(dims) == 2 for dims in ranks) and editor.shapes.dtype(matmul.inputs[0]) in FLOATS
    )


def _fuse_transposes(editor: Editor, gemm: ir.Node) -> None:
    for index, name in ((0, "transA"), (1, "transB")):
        transpose = producer(input_at(gemm, index), gemm.graph, "Transpose")
        if transpose is None or only_user(transpose.outputs[0]) is not gemm or transpose.inputs[0] is None:
            continue
        # A matrix has two axes, so no order given means turned round too.
        if ints_attribute(transpose, "perm") in (None, (1, 0)):
            gemm.replace_input_with(index, transpose.inputs[0])
            gemm.attributes[name] = ir.AttrInt64(name, 1 - int_attribute(gemm, name, 0))
            if not gemm.attributes[name].as_int():
                del gemm.attributes[name]
            inherit(gemm, [transpose])
            editor.modified = True
            remove_dead(editor, [transpose])
