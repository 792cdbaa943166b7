"""Fuse a division by the root mean square into `RMSNormalization`.

1. `x / Sqrt(mean(x * x) + epsilon)`, in any way to write it (`optimizer.ir.normalization`), alone or with a factor
   inside, becomes `RMSNormalization(x)` with a scale of ones or with that factor.
2. `Cast` to half precision of the normalization of a `Cast` to float32 becomes one in half precision: it computes in
   float32 by itself.
3. `RMSNormalization(x) * g` takes `g` as its scale.

It is done when

1. the axes are the last ones, are constant and stay with size 1, and their sizes are known;
2. epsilon is constant, is not negative and stands under the root;
3. nothing else needs the mean: it would be computed twice;
4. the factor has the shape of the normalized axes, or is a constant that can be stretched to it.

`RMSNormalization` is a standard operator since opset 23.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.normalization import Quotient, Refusal, centred, quotient
from optimizer.ir.query import is_op
from optimizer.ir.scale import Formula, absorb_cast, absorb_factor, normalize
from optimizer.pass_manager import Pass

__all__ = ["FuseRmsNorm"]

_NAME = "RMSNormalization"


@dataclasses.dataclass(frozen=True)
class FuseRmsNorm(Pass):
    """Fuses the normalization by the root mean square."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done."""
        return rewrite_nodes(model, _fuse, ("Cast", "Div", "Mul"))


def _fuse(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if scope.opset < 23 or not is_op(node, "Cast", "Div", "Mul"):
        return
    if absorb_cast(editor, scope, node, _NAME) or absorb_factor(editor, scope, node, _NAME):
        return
    match quotient(editor, node):
        case Refusal(reason, x):
            if centred(editor, x) is None:
                editor.miss(node, reason)
        case Quotient() as found:
            if centred(editor, found.x) is None:
                normalize(editor, scope, node, _NAME, Formula(found.x, found.root, found.factor, None, found.nodes))
