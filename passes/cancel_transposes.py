"""Move transposes over element-wise operators to where they cancel.

    Transpose(f(Transpose(x, p), y), q)  ->  f(x, Transpose(y, q))           where q undoes p

From each Transpose the operators that are connected with what it turns are collected as a region, in which every value
changes its order of axes at once. A Transpose at the edge that then does nothing falls away; where something crosses
the edge in the old order, a Transpose is added. Constants are turned when the pass runs. It is done when

1. more transposes fall away than are added;
2. every operator of the region works element by element, or along axes that can be renumbered: Concat, Softmax, and
   reductions that keep their axes; or along the last axis alone, which then has to stay the last: the product with
   a constant matrix, LayerNormalization, RMSNormalization;
3. every operand has as many axes as the result, is constant, or is one element, so that axes stay where they are.

A region has at most 64 operators.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import ints_attribute, is_op
from optimizer.ir.region import region_before
from optimizer.pass_manager import Pass

__all__ = ["CancelTransposes"]


@dataclasses.dataclass(frozen=True)
class CancelTransposes(Pass):
    """Moves transposes to where they cancel."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move wherever the model then has fewer transposes."""
        result = rewrite_nodes(model, _cancel, ("Transpose",))
        # Each time there are fewer transposes, and a region that was turned may have brought two others together.
        while result.modified and rewrite_nodes(model, _cancel, ("Transpose",)).modified:
            pass
        return result


def _cancel(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "Transpose") or node.inputs[0] is None:
        return
    order = ints_attribute(node, "perm")
    region = None if order is None else region_before(editor, node, order)
    if region is not None and region.gain() > 0:
        region.turn(editor, scope)
