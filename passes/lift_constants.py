"""Turn `Constant` nodes into initializers, so that there is one way to be constant.

Not lifted are constants

1. in the body of a function, which can have no initializers;
2. that are an output of their graph;
3. whose value is sparse, or refers to an attribute of the function around it.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import constant, is_op
from optimizer.pass_manager import Pass

__all__ = ["LiftConstants"]


@dataclasses.dataclass(frozen=True)
class LiftConstants(Pass):
    """Turns `Constant` nodes into initializers."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Lift every constant that can be."""
        return rewrite_nodes(model, _lift, ("Constant",))


def _lift(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "Constant") or scope.in_function or node.outputs[0].is_graph_output():
        return
    tensor = constant(node.outputs[0])
    if tensor is not None:
        editor.fold(scope, node, [tensor])
