"""Merge a reshape of a reshape into one. Reshape, Flatten, Squeeze and Unsqueeze all count.

1. When the last shape is the first one, both fall away.
2. When the last shape can be said in terms of the first input (`optimizer.ir.reshape`), the last becomes a `Reshape`
of
   that input. `Reshape` with a 0 copies the size of *its* input, so the shapes of two of them do not simply compose.
3. When the last shape is the first one with axes of size 1 added, or without some, the last becomes an `Unsqueeze` or a
   `Squeeze`.
4. A last `Reshape` by a constant without a 0 does not look at the shape of its input, so it can take the first input
   whatever that shape is.

The first reshape stays when something else uses it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import input_at, int_attribute, is_op, known_ints
from optimizer.ir.reshape import added_axes, reshape_target
from optimizer.pass_manager import Pass

__all__ = ["MergeReshapes"]

_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_AXES_ARE_INPUTS = 13
"""The opset since which Squeeze and Unsqueeze have their axes as an input."""


@dataclasses.dataclass(frozen=True)
class MergeReshapes(Pass):
    """Merges chains of reshapes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge every pair; a chain merges from its front."""
        return rewrite_nodes(model, _merge, _RESHAPES)


def _merge(editor: Editor, scope: Scope, last: ir.Node) -> None:
    if not is_op(last, *_RESHAPES) or scope.opset < 5:
        return
    middle = input_at(last, 0)
    first = None if middle is None else middle.producer()
    if first is None or not is_op(first, *_RESHAPES) or first.inputs[0] is None:
        return
    source = first.inputs[0]
    given, wanted = editor.shapes.dims(source), editor.shapes.dims(last.outputs[0])
    if given is not None and given == wanted and editor.bypass(last, source):
        editor.remove_if_unused(first)
        return
    shape = known_ints(input_at(last, 1)) if last.op_type == "Reshape" else None
    target = reshape_target(wanted, given, may_mix=shape is not None and -1 in shape and 0 in shape)
    added, dropped = added_axes(wanted, given), added_axes(given, wanted)
    if target is not None:
        _become(editor, scope, last, "Reshape", source, target)
    elif added is not None:
        _become(editor, scope, last, "Unsqueeze", source, added)
    elif dropped is not None:
        _become(editor, scope, last, "Squeeze", source, dropped)
    elif shape is not None and (0 not in shape or int_attribute(last, "allowzero", 0)):
        last.replace_input_with(0, source)
        inherit(last, [first])
        editor.modified = True
    else:
        return
    editor.remove_if_unused(first)


def _become(editor: Editor, scope: Scope, last: ir.Node, op_type: str, source: ir.Value, ints: tuple[int, ...]) -> None:
    """Put a node of `source` and constant integers in the place of `last`."""
    middle = last.inputs[0]
    first = None if middle is None else middle.producer()
    if op_type != "Reshape" and scope.opset < _AXES_ARE_INPUTS:
        merged = ir.node(op_type, inputs=[source], attributes={"axes": ints})
    else:
        name = f"{last.outputs[0].name}_{'shape' if op_type == 'Reshape' else 'axes'}"
        merged = ir.node(op_type, inputs=[source, editor.constant(scope, last, name, np.array(ints, np.int64))])
    editor.substitute(last, merged, [] if first is None else [first])
