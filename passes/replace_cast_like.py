"""Say the type that a `CastLike` casts to.

    CastLike(x, y)  ->  Cast<to = type of y>(x)

So a constant that is cast can be folded, and `y` need not be computed for its type alone. A `CastLike` stays when the
type
of `y` is not known.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import input_at, is_op
from optimizer.pass_manager import Pass

__all__ = ["ReplaceCastLike"]


@dataclasses.dataclass(frozen=True)
class ReplaceCastLike(Pass):
    """Turns CastLike into Cast."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace wherever the type is known."""
        return rewrite_nodes(model, _replace, ("CastLike",))


def _replace(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if not is_op(node, "CastLike"):
        return
    to = editor.shapes.dtype(input_at(node, 1))
    if to is not None:
        attributes = {**node.attributes, "to": ir.AttrInt64("to", to.value)}
        editor.substitute(node, ir.Node("", "Cast", [node.inputs[0]], attributes))
