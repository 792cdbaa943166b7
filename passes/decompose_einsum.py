"""Say an `Einsum` of two operands as a product of matrices, with transposes around it.

    Einsum<"bqhd,bkhd->bhqk">(x, y)  ->  MatMul(Transpose(x), Transpose(y))
    Einsum<"bsd,dhk->bshk">(x, y)    ->  Reshape(MatMul(x, Reshape(y)))

and an `Einsum` of one operand that only turns axes as a `Transpose`. What knows products can then do with it what it
does with all of them: fuse-attention above all. It is done when

1. the equation has no `...`; no letter stands twice in an operand or in the output;
2. each letter is in both operands and the output, or in one operand and the output, or in both operands alone; of the
   last kind there is exactly one, and its sizes are known to be equal: `Einsum` would stretch a size of 1;
3. what is only in the first operand, and what is only in the second, is one letter each; where no letter is in all
   three, the first may have any number that the output begins with, in their order, and so may a second operand of
   known sizes, none of them 0, have any number that the output ends with;
4. `MatMul` has the type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import FLOATS, is_op, string_attribute
from optimizer.pass_manager import Pass

__all__ = ["DecomposeEinsum"]

_TYPES = FLOATS | {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT32, ir.DataType.UINT64}
_FIRST_OPSET = 13
"""Since when `MatMul` has all of the types."""


@dataclasses.dataclass(frozen=True)
class DecomposeEinsum(Pass):
    """Makes products and transposes of `Einsum`."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Decompose wherever it can be done."""
        return rewrite_nodes(model, _decompose, ("Einsum",))


@dataclasses.dataclass(frozen=True)
class _Product:
    """What the letters of an equation of two operands are.

    Attributes:
        batch: In both operands and the output, in the order of the output.
        left: In the first operand and the output, in the order of the output.
        right: In the second operand and the output, in the order of the output.
        inner: In both operands alone.
    """

    batch: str
    left: str
    right: str
    inner: str


def _decompose(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "Einsum") or scope.opset < _FIRST_OPSET or None in node.inputs:
        return
    operands, arrow, output = string_attribute(node, "equation", "").replace(" ", "").partition("->")
    terms = operands.split(",")
    if not arrow:  # What stands once is the output, in the order of the alphabet.
        output = "".join(sorted(letter for letter in operands if letter.isalpha() and operands.count(letter) == 1))
    if len(terms) != len(node.inputs):
        return
    if any(not (term.isalpha() or not term) or len(set(term)) != len(term) for term in (*terms, output)):
        return
    if len(terms) == 1 and sorted(terms[0]) == sorted(output):
        order = [terms[0].index(letter) for letter in output]
        editor.substitute(node, ir.node("Transpose", [node.inputs[0]], {"perm": order}))
    elif len(terms) == 2:
        product = _product(terms[0], terms[1], output)
        if product is not None and _fits(editor, node, terms, product):
            _replace(editor, scope, node, terms, output, product)


def _product(first: str, second: str, output: str) -> _Product | None:
    letters = set(first) | set(second)
    if not set(output) <= letters:
        return None
    inner = "".join(letter for letter in first if letter in second and letter not in output)
    if len(inner) != 1 or letters - set(output) != {inner}:
        return None
    batch = "".join(letter for letter in output if letter in first and letter in second)
    left = "".join(letter for letter in output if letter in first and letter not in second)
    right = "".join(letter for letter in output if letter in second and letter not in first)
    several = len(left) > 1 or len(right) > 1
    if not left or not right or (several and output != left + right):
        return None
    return _Product(batch, left, right, inner)


def _fits(editor: Editor, node: ir.Node, terms: Sequence[str], product: _Product) -> bool:
    shapes = [editor.shapes.dims(value) for value in node.inputs]
    if editor.shapes.dtype(node.inputs[0]) not in _TYPES:
        return False
    sizes = []
    for dims, term in zip(shapes, terms, strict=True):
        if dims is None or len(dims) != len(term):
            return False
        sizes.append(dims[term.index(product.inner)])
    if sizes[0] != sizes[1]:
        return False
    second = editor.shapes.static(node.inputs[1])
    return len(product.right) == 1 or (second is not None and 0 not in second)


def _replace(editor: Editor, scope: Scope, node: ir.Node, terms: Sequence[str], output: str, product: _Product) -> None:
    orders = (product.batch + product.left + product.inner, product.batch + product.inner + product.right)
    first, second = (
        _turned(editor, node, value, term, order) for value, term, order in zip(node.inputs, terms, orders, strict=True)
    )
    if len(product.right) > 1:
        second = _joined(editor, scope, node, second, terms[1], product)
    matmul = ir.node("MatMul", [first, second])
    given = product.batch + product.left + product.right
    if len(product.right) > 1:
        sizes = _sizes(editor, node, terms[1], product.right)
        target = editor.constant(scope, node, "einsum_shape", np.array([*[0] * len(product.left), *sizes], np.int64))
        _put(editor, node, matmul)
        editor.substitute(node, ir.node("Reshape", [matmul.outputs[0], target]))
    elif given != output:
        _put(editor, node, matmul)
        order = [given.index(letter) for letter in output]
        editor.substitute(node, ir.node("Transpose", [matmul.outputs[0]], {"perm": order}))
    else:
        editor.substitute(node, matmul)


def _turned(editor: Editor, node: ir.Node, value: ir.Value | None, term: str, order: str) -> ir.Value:
    assert value is not None, "no operand is left out"
    if term == order:
        return value
    transpose = ir.node("Transpose", [value], {"perm": [term.index(letter) for letter in order]})
    return _put(editor, node, transpose)


def _joined(editor: Editor, scope: Scope, node: ir.Node, value: ir.Value, term: str, product: _Product) -> ir.Value:
    """The second operand as a matrix."""
    rows = _sizes(editor, node, term, product.inner)
    columns = int(np.prod(_sizes(editor, node, term, product.right)))
    shape = editor.constant(scope, node, "einsum_shape", np.array([*rows, columns], np.int64))
    return _put(editor, node, ir.node("Reshape", [value, shape]))


def _sizes(editor: Editor, node: ir.Node, term: str, letters: str) -> list[int]:
    shape = editor.shapes.static(node.inputs[1])
    assert shape is not None, "it has been checked"
    return [shape[term.index(letter)] for letter in letters]


def _put(editor: Editor, node: ir.Node, new: ir.Node) -> ir.Value:
    inherit(new, [node])
    new.outputs[0].name = editor.fresh_name(f"{node.outputs[0].name}_part")
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_before(node, new)
    return new.outputs[0]
