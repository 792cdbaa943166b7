"""Let convolutions pad by themselves.

    Conv(Pad(x, [0, 0, t, l, 0, 0, b, r]), w)  ->  Conv<pads = [t, l, b, r]>(x, w)

A convolution adds zeros at the edges while it reads, which costs next to nothing, and what is between two layers is one
value less: that can then be rounded once. It is done when

1. the Pad adds a known number of constant zeros, and takes nothing away;
2. it does so along axes of pixels only;
3. its result is no output of the graph, and only read by convolutions, as their input;
4. these say themselves how much they pad (`auto_pad` of NOTSET or VALID).
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import array, input_at, ints_attribute, is_op, known_ints, string_attribute
from optimizer.pass_manager import Pass

__all__ = ["FoldPads"]


@dataclasses.dataclass(frozen=True)
class FoldPads(Pass):
    """Folds Pad into the convolutions behind it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold wherever it can be done."""
        return rewrite_nodes(model, _fold, ("Pad",))


def _fold(editor: Editor, scope: Scope, node: ir.Node) -> None:
    x = input_at(node, 0)
    if not is_op(node, "Pad") or x is None or not _adds_zeros(node):
        return
    pixels, padded = _pixels(editor, node), node.outputs[0]
    uses = list(padded.uses())
    if pixels is None or padded.is_graph_output() or not uses:
        return
    own = {user: _own_pads(user, len(pixels) // 2) for user, _ in uses}
    if any(index != 0 or user.graph is not scope.graph or own[user] is None for user, index in uses):
        return
    for user, pads in own.items():
        assert pads is not None, "this was just asked"
        user.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(pads, pixels, strict=True)])
        user.attributes.pop("auto_pad", None)
        user.replace_input_with(0, x)
        inherit(user, [node])
    editor.modified = True
    editor.remove_if_unused(node)


def _adds_zeros(node: ir.Node) -> bool:
    filling = input_at(node, 2)
    number = array(filling)
    return string_attribute(node, "mode", "constant") == "constant" and (
        filling is None or (number is not None and not number.any())
    )


def _pixels(editor: Editor, node: ir.Node) -> list[int] | None:
    """How much is added in front of and behind each axis of pixels; `None` if that is not known, or all there is."""
    dims, amounts, named = editor.shapes.dims(node.inputs[0]), known_ints(input_at(node, 1)), input_at(node, 3)
    axes = known_ints(named) if named is not None else tuple(range(len(dims or ())))
    if dims is None or len(dims) < 3 or amounts is None or axes is None or min(amounts, default=0) < 0:
        return None
    before, behind = [0] * len(dims), [0] * len(dims)
    for place, axis in enumerate(axes):
        before[axis], behind[axis] = amounts[place], amounts[place + len(axes)]
    if any(before[:2]) or any(behind[:2]):
        return None
    return [*before[2:], *behind[2:]]


def _own_pads(node: ir.Node, axes: int) -> list[int] | None:
    """What a convolution pads already; `None` for another node, or where the sizes decide."""
    if not is_op(node, "Conv") or string_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    pads = ints_attribute(node, "pads") or (0,) * (2 * axes)
    valid = string_attribute(node, "auto_pad", "NOTSET") == "VALID"
    return [0] * (2 * axes) if valid else list(pads)
