"""Take elements out of sequences without building the sequence.

    1. SequenceAt(SequenceConstruct(a, b, ...), constant)  ->  the element itself
    2. SplitToSequence(x, sizes)  ->  SequenceConstruct(Split(x, sizes)...), so that 1 applies

Exporters write every split of a tensor as 2 and 1. It needs opset 13, sizes that are known, and nothing else than a
`SequenceAt` with a constant position that reads the sequence.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import array, input_at, int_attribute, is_op, known_ints
from optimizer.pass_manager import Pass

__all__ = ["UnpackSequences"]

_FIRST_OPSET = 13
"""The first in which sizes and axes are inputs."""


@dataclasses.dataclass(frozen=True)
class UnpackSequences(Pass):
    """Takes elements out of sequences without building the sequence."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite a split before those that read from it."""
        return rewrite_nodes(model, _unpack, ("SequenceAt", "SplitToSequence"))


def _unpack(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if is_op(node, "SequenceAt"):
        _take_element(editor, node)
    elif is_op(node, "SplitToSequence") and scope.opset >= _FIRST_OPSET:
        _split(editor, scope, node)


def _take_element(editor: Editor, node: ir.Node) -> None:
    sequence = input_at(node, 0)
    construct = None if sequence is None else sequence.producer()
    if construct is None or not is_op(construct, "SequenceConstruct"):
        return
    position = _position(node, len(construct.inputs))
    element = None if position is None else construct.inputs[position]
    if element is None:
        return
    editor.replace_or_copy(node, node.outputs[0], element)
    editor.remove(node)
    editor.remove_if_unused(construct)


def _position(node: ir.Node, count: int) -> int | None:
    """Which of `count` elements a `SequenceAt` reads; `None` when that is not known or there is no such element."""
    known = known_ints(input_at(node, 1))
    if known is None or len(known) != 1 or not -count <= known[0] < count:
        return None
    return known[0] % count


def _split(editor: Editor, scope: Scope, node: ir.Node) -> None:
    sizes = _sizes(editor, node)
    sequence = node.outputs[0]
    if sizes is None or sequence.is_graph_output() or not sequence.uses():
        return
    if any(not is_op(use.node, "SequenceAt") or _position(use.node, len(sizes)) is None for use in sequence.uses()):
        return
    axis = int_attribute(node, "axis", 0)
    given = editor.constant(scope, node, f"{sequence.name}_sizes", np.array(sizes, np.int64))
    split = ir.node("Split", [node.inputs[0], given], {"axis": axis}, num_outputs=len(sizes), name=node.name)
    parts = [_insert(editor, node, split, number) for number in range(len(sizes))]
    if input_at(node, 1) is None and not int_attribute(node, "keepdims", 1):
        axes = editor.constant(scope, node, f"{sequence.name}_axis", np.array([axis], np.int64))
        squeezed = [ir.node("Squeeze", [part, axes]) for part in parts]
        parts = [_insert(editor, node, squeeze, 0) for squeeze in squeezed]
    editor.substitute(node, ir.node("SequenceConstruct", parts))


def _insert(editor: Editor, before: ir.Node, node: ir.Node, output: int) -> ir.Value:
    """Put a new node in front of `before`, unless it is there, and give one of its outputs, with a name."""
    if node.graph is None:
        inherit(node, [before])
        assert before.graph is not None, "the node is in a graph"
        before.graph.insert_before(before, node)
    value = node.outputs[output]
    value.name = editor.fresh_name(f"{before.outputs[0].name}_{output}")
    return value


def _sizes(editor: Editor, node: ir.Node) -> tuple[int, ...] | None:
    """The sizes of the parts along the axis, if they are known and at least one."""
    dims = editor.shapes.dims(node.inputs[0])
    axis = int_attribute(node, "axis", 0)
    length = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
    given = input_at(node, 1)
    if given is None:
        return (1,) * length if isinstance(length, int) and length else None
    known, written = known_ints(given), array(given)
    if known is None or written is None or not known or min(known) < 0:
        return None
    if written.ndim:
        return known if not isinstance(length, int) or sum(known) == length else None
    if not isinstance(length, int) or not length or not known[0]:
        return None
    whole, rest = divmod(length, known[0])
    return (known[0],) * whole + ((rest,) if rest else ())
