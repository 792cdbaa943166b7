"""Remove sums with `0.0` where the sign of a zero does not matter.

    Add(x, 0.0)  ->  x,    Sub(x, -0.0)  ->  x

These turn `-0.0` into `0.0` and change nothing else, so eliminate-identities leaves the first. Biases of zeros are such
sums. It is done when

1. the constant is zero throughout and does not stretch the shape of `x`;
2. whatever is computed from the sum is the same for both zeros, up to where that ends: a comparison, an exponential, or
   the sum with another constant (`optimizer.ir.zero_signs`). An output of the model keeps its zeros as they are.
"""

from __future__ import annotations

import dataclasses
import functools

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import either_order
from optimizer.ir.query import FLOATS, constant, is_op
from optimizer.ir.zero_signs import ZeroSigns
from optimizer.pass_manager import Pass

__all__ = ["EliminateZeroSums"]


@dataclasses.dataclass(frozen=True)
class EliminateZeroSums(Pass):
    """Removes sums with zeros."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove in topological order; what ended at a removed sum then ends where the sum's own sign does."""
        return rewrite_nodes(model, functools.partial(_eliminate, _Lazy(model)), ("Add", "Sub"))


class _Lazy:
    """Looks at the model only when there is a sum with zeros."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model

    @functools.cached_property
    def signs(self) -> ZeroSigns:
        return ZeroSigns(self._model)


def _eliminate(lazy: _Lazy, editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "Add", "Sub") or scope.parent is not None or scope.in_function:
        return
    sides = either_order(node) if node.op_type == "Add" else [(node.inputs[0], node.inputs[1])]
    for x, zero in sides:
        if x is None or zero is None or not _is_zero(editor, zero, x):
            continue
        if not lazy.signs.matters(node.outputs[0]) and editor.bypass(node, x):
            return


def _is_zero(editor: Editor, value: ir.Value, other: ir.Value) -> bool:
    tensor = constant(value)
    if tensor is None or tensor.dtype not in FLOATS or tensor.size == 0 or tensor.numpy().any():
        return False
    dims = editor.shapes.dims(other)
    if dims is None or len(tensor.shape) > len(dims):
        return False
    sizes = zip(reversed(tensor.shape.numpy()), reversed(dims), strict=False)
    return all(size in (1, dim) for size, dim in sizes)
