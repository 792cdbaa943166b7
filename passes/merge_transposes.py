"""Merge a transpose of a transpose into one.

    Transpose(Transpose(x, p), q)  ->  Transpose(x, [p[i] for i in q]),  or x itself when that keeps the order

The inner transpose stays when something else uses it.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import input_at, ints_attribute, is_op
from optimizer.pass_manager import Pass

__all__ = ["MergeTransposes"]


@dataclasses.dataclass(frozen=True)
class MergeTransposes(Pass):
    """Merges chains of transposes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge every pair; a chain merges from its front."""
        return rewrite_nodes(model, _merge, ("Transpose",))


def _merge(editor: Editor, scope: Scope, outer: ir.Node) -> None:
    if not is_op(outer, "Transpose"):
        return
    middle = input_at(outer, 0)
    inner = None if middle is None else middle.producer()
    if inner is None or not is_op(inner, "Transpose") or inner.inputs[0] is None:
        return
    order = _composed(_order(editor, inner), _order(editor, outer))
    if order is None:
        return
    source = inner.inputs[0]
    if order == tuple(range(len(order))) and editor.bypass(outer, source):
        editor.remove_if_unused(inner)
        return
    outer.replace_input_with(0, source)
    outer.attributes["perm"] = ir.AttrInt64s("perm", order)
    inherit(outer, [inner])
    editor.modified = True
    editor.remove_if_unused(inner)


def _order(editor: Editor, node: ir.Node) -> tuple[int, ...] | None:
    order = ints_attribute(node, "perm")
    if order is not None:
        return order
    dims = editor.shapes.dims(node.inputs[0])
    return None if dims is None else tuple(reversed(range(len(dims))))


def _composed(first: tuple[int, ...] | None, second: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if first is None or second is None or sorted(first) != sorted(second):
        return None
    return tuple(first[axis] for axis in second)
