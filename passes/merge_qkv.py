"""Merge the projections of queries, keys and values that share their input into one.

    Add(MatMul(x, Wq), bq), Add(MatMul(x, Wk), bk), Add(MatMul(x, Wv), bv)
        ->  Split(Add(MatMul(x, [Wq Wk Wv]), [bq bk bv]))

What counts is what an `Attention` is given, be it through a rotation, a normalization or another arrangement of axes.
Keys and values alone are merged where the queries come from elsewhere. It is done when

1. the weights are constant matrices, and nothing else uses them: they are replaced by their concatenation;
2. the biases are constant vectors; where one is missing, `-0.0` is added, which changes nothing;
3. there are fewer nodes afterwards.

A product and a sum may be one `Gemm`. Where the three are gathered out of one projection already, as PyTorch's
`MultiheadAttention` does, they are split out of it instead, which takes fewer nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import FLOATS, constant, float_attribute, input_at, int_attribute, is_op, only_user
from optimizer.ir.tensors import concatenated
from optimizer.pass_manager import Pass
from passes.attention.build import Place, sweep
from passes.attention.gathered import split_gathered

__all__ = ["MergeQkv"]

_BETWEEN = ("RotaryEmbedding", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "RMSNormalization", "LayerNormalization")
"""What may stand between a projection and the attention: it keeps positions apart, or only arranges them."""
_DEPTH = 6
_NAMES = ("query", "key", "value")


@dataclasses.dataclass(frozen=True)
class MergeQkv(Pass):
    """Merges projections that feed one attention."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge wherever it can be done."""
        return rewrite_nodes(model, _merge, ("Attention",))


@dataclass(frozen=True)
class _Projection:
    """A linear map of `x`.

    Attributes:
        x: `[..., I]`.
        weight: `[I, O]`, or `[O, I]` in a Gemm with `transB`.
        bias: `[O]`, or `None`.
        product: MatMul or Gemm.
        last: The node that gives the result: `product`, or the Add behind it.
        transposed: Whether the weight is.
        problem: Why it cannot be merged, if that is so.
    """

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    product: ir.Node
    last: ir.Node
    transposed: bool
    problem: str | None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The product and the sum."""
        return (self.product,) if self.last is self.product else (self.product, self.last)

    @property
    def kind(self) -> tuple[object, ...]:
        """What must be alike for a merge."""
        return self.x, self.product.op_type, self.transposed, self.weight.dtype

    @property
    def width(self) -> int:
        """`O`."""
        return _matrix(self.weight).shape.numpy()[0 if self.transposed else 1]


def _merge(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "Attention"):
        return
    split_gathered(editor, scope, node)
    found = {name: _projection(input_at(node, index)) for index, name in enumerate(_NAMES)}
    groups: dict[tuple[object, ...], dict[ir.Node, _Projection]] = {}
    for name, projection in found.items():
        if projection is None:
            continue
        if projection.problem is None:
            groups.setdefault(projection.kind, {})[projection.last] = projection
        elif sum(other is not None and other.x is projection.x for other in found.values()) > 1:
            editor.miss(node, f"the {name} {projection.problem}")
    for group in groups.values():
        projections = list(group.values())
        if _saved(projections) > 0:
            _put(editor, scope, projections)


def _saved(projections: list[_Projection]) -> int:
    """How many nodes fewer there are afterwards."""
    before = sum(len(projection.nodes) for projection in projections)
    sums = any(projection.last is not projection.product for projection in projections)
    return before - (3 if sums else 2) if len(projections) > 1 else 0


# --- The match ---


def _projection(value: ir.Value | None) -> _Projection | None:
    """The projection that a value comes from."""
    for _ in range(_DEPTH):
        node = None if value is None else value.producer()
        if node is None or not is_op(node, *_BETWEEN):
            break
        value = node.inputs[0]
    node = None if value is None else value.producer()
    if node is None:
        return None
    if is_op(node, "Gemm"):
        return _of_gemm(node)
    if is_op(node, "MatMul"):
        return _of_product(node, None, node)
    if is_op(node, "Add"):
        for bias, given in (node.inputs, node.inputs[::-1]):
            product = None if given is None else given.producer()
            if bias is not None and constant(bias) is not None and product is not None and is_op(product, "MatMul"):
                return _of_product(product, bias, node) if only_user(product.outputs[0]) is node else None
    return None


def _of_product(product: ir.Node, bias: ir.Value | None, last: ir.Node) -> _Projection | None:
    x, weight = product.inputs[:2]
    if x is None or weight is None:
        return None
    return _Projection(x, weight, bias, product, last, False, _problem(product, weight, bias, transposed=False))


def _of_gemm(node: ir.Node) -> _Projection | None:
    x, weight, bias = node.inputs[0], node.inputs[1], input_at(node, 2)
    plain = float_attribute(node, "alpha", 1.0) == 1 and (bias is None or float_attribute(node, "beta", 1.0) == 1)
    if x is None or weight is None or not plain or int_attribute(node, "transA", 0):
        return None
    transposed = int_attribute(node, "transB", 0) == 1
    problem = _problem(node, weight, bias, transposed=transposed)
    return _Projection(x, weight, bias, node, node, transposed, problem)


def _problem(product: ir.Node, weight: ir.Value, bias: ir.Value | None, *, transposed: bool) -> str | None:
    matrix = constant(weight)
    if matrix is None:
        return f"is projected by {weight.name!r}, which is not constant"
    if len(matrix.shape) != 2 or matrix.dtype not in FLOATS:
        return f"is projected by {weight.name!r}, which is no matrix of floats"
    if only_user(weight) is not product:
        return f"is projected by {weight.name!r}, which is used elsewhere too"
    vector = constant(bias)
    width = matrix.shape.numpy()[0 if transposed else 1]
    if bias is not None and (vector is None or vector.size != width or vector.shape.numpy()[-1:] != (width,)):
        return f"is shifted by {bias.name!r}, which is not a constant vector"
    return None


# --- The replacement ---


def _put(editor: Editor, scope: Scope, projections: list[_Projection]) -> None:
    nodes = [node for projection in projections for node in projection.nodes]
    first = min(projections, key=_place_in(scope.graph, [projection.product for projection in projections]))
    place = Place(editor, scope, first.product, nodes)
    weight = place.constant(_joined_weights(projections), "qkv_weight")
    bias = _joined_biases(projections)
    shift = None if bias is None else place.constant(bias, "qkv_bias")
    if first.product.op_type == "Gemm":
        inputs = [first.x, weight, *([] if shift is None else [shift])]
        merged = place.add("Gemm", inputs, {"transB": int(first.transposed)}, "qkv")
    else:
        merged = place.add("MatMul", [first.x, weight], name="qkv_product" if shift else "qkv")
        merged = merged if shift is None else place.add("Add", [merged, shift], name="qkv")
    sizes = place.ints([projection.width for projection in projections], "qkv_sizes")
    split = ir.node("Split", [merged, sizes], {"axis": -1}, num_outputs=len(projections))
    place.insert(split, "qkv_part")
    for projection, part in zip(projections, split.outputs, strict=True):
        editor.replace(projection.last.outputs[0], part)
    sweep(editor, nodes)


def _place_in(graph: ir.Graph, products: list[ir.Node]) -> Any:
    """A key by which the first of them in the graph is the least."""
    wanted = set(products)
    order = {node: index for index, node in enumerate(graph) if node in wanted}
    return lambda projection: order[projection.product]


def _matrix(weight: ir.Value) -> ir.TensorProtocol:
    matrix = constant(weight)
    assert matrix is not None, "a projection has a constant weight"
    return matrix


def _joined_weights(projections: list[_Projection]) -> ir.TensorProtocol:
    weights = [_matrix(projection.weight) for projection in projections]
    return concatenated(weights, axis=0 if projections[0].transposed else 1)


def _joined_biases(projections: list[_Projection]) -> npt.NDArray[Any] | None:
    if all(projection.bias is None for projection in projections):
        return None
    return np.concatenate(list(_biases(projections)))


def _biases(projections: list[_Projection]) -> Iterator[npt.NDArray[Any]]:
    for projection in projections:
        vector = constant(projection.bias)
        if vector is not None:
            yield vector.numpy().reshape(-1)
        else:
            yield np.full(projection.width, -0.0, _matrix(projection.weight).numpy().dtype)
