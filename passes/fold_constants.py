"""Compute nodes whose inputs are all constant.

A node is folded when

1. it is a standard operator without a subgraph, and is not random;
2. all its inputs are constant tensors, none of them of strings;
3. the model does not grow beyond the cap. The growth is what the new constants are larger than the constants that
fall away
   with the node; it is written at each constant that is a growth, so that the cap holds for a model however often the
   pass runs. So a `ConstantOfShape`, `Expand` or `Tile` that blows up stays.

A `ConstantOfShape` that is the weight of a layer is folded whatever its size, and counts for no growth: it is how a
file without its weights is written, and nothing can be folded into a layer whose weight is not constant.

`DequantizeLinear` is never folded: its input is the small form of the weight, and backends compute with it. Neither is
a `Cast` of 4-bit integers, for the same reason: they may be the indices of a codebook.
A default of an input is not constant.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.evaluate import evaluate
from optimizer.ir.query import RANDOM_OPERATORS, constant, input_at, is_op, known_ints, tensor_of
from optimizer.ir.walk import all_graphs, subgraphs
from optimizer.pass_manager import Pass

__all__ = ["FoldConstants"]

_KEPT = frozenset({"Constant", "DequantizeLinear", "Optional", "SequenceConstruct", "SequenceEmpty", *RANDOM_OPERATORS})
_CODES = (ir.DataType.INT4, ir.DataType.UINT4)
_SHRINKING = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose outputs have a size that depends on the elements, but are not much larger than their inputs."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LARGEST_WEIGHT = 2**28
"""Elements; a file with a larger weight is broken rather than light."""
_GROWTH = "tersor.growth"


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """Computes what is constant.

    Attributes:
        max_growth_bytes: How much larger the model may become by folding, in bytes.
    """

    max_growth_bytes: int = 8 * 2**20

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold in topological order, so that chains fold in one run."""
        budget = _Budget(self.max_growth_bytes - sum(_growths(model)))
        return rewrite_nodes(model, functools.partial(_fold, budget))


class _Budget:
    """How many bytes the model may still grow."""

    def __init__(self, left: int) -> None:
        self.left = left


def _growths(model: ir.Model) -> Iterator[int]:
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            yield int(value.metadata_props.get(_GROWTH, 0))
        for node in graph:
            if is_op(node, "Constant"):
                yield int(node.outputs[0].metadata_props.get(_GROWTH, 0))


def _fold(budget: _Budget, editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, node.op_type) or node.op_type in _KEPT or next(subgraphs(node), None) is not None:
        return
    tensors = [constant(value) for value in node.inputs]
    if _fold_weight(editor, scope, node):
        return
    if any(tensor is None and value is not None for tensor, value in zip(tensors, node.inputs, strict=True)):
        return
    if any(tensor is not None and tensor.dtype == ir.DataType.STRING for tensor in tensors):
        return
    if is_op(node, "Cast") and tensors[0] is not None and tensors[0].dtype in _CODES:
        return
    freed = _freed(node)
    released = sum(int(value.metadata_props.get(_GROWTH, 0)) for value in freed)
    allowed = budget.left + released + sum(_nbytes(value) for value in freed)
    expected = _expected_bytes(editor, node, tensors)
    if expected is None or expected > allowed:
        return
    results = evaluate(node, scope.opset, [None if tensor is None else tensor.numpy() for tensor in tensors])
    if results is None or not _have_expected_types(editor, node, results):
        return
    growth = sum(result.nbytes for result in results) - sum(_nbytes(value) for value in freed)
    if growth > budget.left + released:
        return
    budget.left += released - max(growth, 0)
    _replace(editor, scope, node, results, max(growth, 0))
    _drop(freed)


def _fold_weight(editor: Editor, scope: Scope, node: ir.Node) -> bool:
    """Make a tensor of one number that a layer multiplies by, without taking memory for it."""
    sizes = known_ints(input_at(node, 0)) if is_op(node, "ConstantOfShape") else None
    value = node.outputs[0]
    users = [(user, index) for user, index in value.uses()]
    if not sizes or not users or value.is_graph_output() or scope.in_function:
        return False
    if not all(is_op(user, *_LAYERS) and index > 0 for user, index in users) or math.prod(sizes) > _LARGEST_WEIGHT:
        return False
    attribute = node.attributes.get("value")
    number = np.zeros(1, np.float32) if attribute is None else tensor_of(attribute).numpy()
    editor.fold(scope, node, [np.broadcast_to(number.reshape(()), sizes)])
    return True


def _freed(node: ir.Node) -> list[ir.Value]:
    """The constants that nothing but this node uses."""
    found = dict.fromkeys(value for value in node.inputs if value is not None)
    return [
        value
        for value in found
        if not value.is_graph_output() and all(user is node for user, _ in value.uses()) and value.is_initializer()
    ]


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _expected_bytes(editor: Editor, node: ir.Node, tensors: list[ir.TensorProtocol | None]) -> int | None:
    """The size of the outputs; `None` when it is not known, or when they are no tensors of numbers."""
    total = 0
    for output in node.outputs:
        if output.name == "":
            continue
        type_, sizes = editor.shapes.type(output), editor.shapes.static(output)
        if not isinstance(type_, ir.TensorType) or type_.dtype == ir.DataType.STRING:
            return None
        if sizes is None:
            sizes = _bound(node, tensors)
        if sizes is None:
            return None
        total += int(type_.dtype.itemsize * float(np.prod(sizes, dtype=np.float64)))
    return total


def _bound(node: ir.Node, tensors: list[ir.TensorProtocol | None]) -> tuple[int, ...] | None:
    if node.op_type in _SHRINKING and tensors[0] is not None:
        return (tensors[0].size, max(1, len(tensors[0].shape)))
    if node.op_type == "Range" and all(tensor is not None and tensor.size == 1 for tensor in tensors):
        start, limit, step = (float(tensor.numpy().reshape(-1)[0]) for tensor in tensors if tensor is not None)
        return (max(0, int((limit - start) / step) + 1),) if step and np.isfinite([start, limit, step]).all() else None
    return None


def _have_expected_types(editor: Editor, node: ir.Node, results: list[npt.NDArray[np.generic]]) -> bool:
    named = [output for output in node.outputs if output.name != ""]
    if len(named) != len(results):
        return False
    for output, result in zip(named, results, strict=True):
        dtype, sizes = editor.shapes.dtype(output), editor.shapes.static(output)
        if dtype is None or result.dtype != dtype.numpy() or (sizes is not None and result.shape != sizes):
            return False
    return True


def _replace(editor: Editor, scope: Scope, node: ir.Node, results: list[npt.NDArray[np.generic]], growth: int) -> None:
    # A transposed weight stays a view: a large model would otherwise be held twice, once each way round.
    keeps_view = node.op_type == "Transpose"
    contents = [item if keeps_view else np.ascontiguousarray(item).reshape(item.shape) for item in results]
    constants = editor.fold(scope, node, contents)
    if growth:
        constants[0].metadata_props[_GROWTH] = str(growth)


def _drop(values: list[ir.Value]) -> None:
    for value in values:
        if value.graph is not None and value.name is not None:
            del value.graph.initializers[value.name]
