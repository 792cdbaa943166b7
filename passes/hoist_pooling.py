"""Average first, then multiply: an average pooling moves in front of a convolution of single pixels.

    AveragePool(Conv(x, W, b))  ->  Conv(AveragePool(x), W, b)            also GlobalAveragePool

Both are linear, one acts on channels and the other on places, and so they commute. The convolution is then of as many
pixels as the pooling leaves: a quarter in the transitions of DenseNet (Huang et al. 2017, section 3). It is done when

1. the window of the convolution is one pixel, its strides are 1, and it has no padding;
2. nothing else reads the convolution's result, which is no output;
3. the pooling leaves fewer pixels: a stride is above 1, or it is global;
4. the pooling has no more channels to average than before, or the convolution at least 32 for each it reads: what it
   saves is then more than what the pooling costs;
5. with a bias, each average is of pixels alone (`count_include_pad` is 0, or there is no padding): zeros from the
   padding have no bias. The pooling does not round its size up (`ceil_mode`), where runtimes differ in what they count.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import producer
from optimizer.ir.provenance import inherit
from optimizer.ir.query import input_at, int_attribute, ints_attribute, is_op, only_user, string_attribute
from optimizer.pass_manager import Pass

__all__ = ["HoistPooling"]

_POOLS = ("AveragePool", "GlobalAveragePool")
_CHANNELS = 32
"""Products for an element that is read, beyond which to average it first is the smaller part."""


@dataclasses.dataclass(frozen=True)
class HoistPooling(Pass):
    """Moves average pooling in front of convolutions of single pixels."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move each as far to the front as it can go."""
        return rewrite_nodes(model, _hoist, _POOLS)


def _hoist(editor: Editor, scope: Scope, node: ir.Node) -> None:
    conv = producer(input_at(node, 0), node.graph, "Conv") if is_op(node, *_POOLS) else None
    if conv is None or not _is_of_pixels(editor, conv) or not _shrinks(node):
        return
    if only_user(conv.outputs[0]) is not node:
        editor.miss(node, f"something else reads {conv.outputs[0].name}, too")
        return
    reason = _unlike(node, conv) or _dearer(editor, conv)
    if reason is not None:
        editor.miss(node, reason)
        return
    pool = ir.Node("", node.op_type, [conv.inputs[0]], node.attributes.copy(), version=node.version)
    pool.outputs[0].name = editor.fresh_name(conv.outputs[0].name)
    inherit(pool, [node])
    assert node.graph is not None, "it was visited in one"
    node.graph.insert_before(node, pool)
    after = ir.Node("", "Conv", [pool.outputs[0], *conv.inputs[1:]], conv.attributes.copy(), version=conv.version)
    editor.substitute(node, after, [conv])
    editor.remove_if_unused(conv)
    _hoist(editor, scope, pool)


def _is_of_pixels(editor: Editor, conv: ir.Node) -> bool:
    """Whether each result is of one pixel, and there is one for each."""
    dims = editor.shapes.dims(input_at(conv, 1))
    return (
        dims is not None
        and all(size == 1 for size in dims[2:])
        and all(stride == 1 for stride in ints_attribute(conv, "strides") or ())
        and not any(ints_attribute(conv, "pads") or ())
    )


def _shrinks(pool: ir.Node) -> bool:
    return pool.op_type == "GlobalAveragePool" or any(s > 1 for s in ints_attribute(pool, "strides") or ())


def _unlike(pool: ir.Node, conv: ir.Node) -> str | None:
    """Why the two do not commute."""
    if int_attribute(pool, "ceil_mode", 0):
        return "the pooling rounds its size up"
    padded = any(ints_attribute(pool, "pads") or ()) or string_attribute(pool, "auto_pad", "NOTSET").startswith("SAME")
    if input_at(conv, 2) is not None and padded and int_attribute(pool, "count_include_pad", 0):
        return "the pooling counts padding, which has no bias"
    return None


def _dearer(editor: Editor, conv: ir.Node) -> str | None:
    """Why more would be averaged than is saved."""
    dims = editor.shapes.dims(input_at(conv, 1))
    groups = int_attribute(conv, "group", 1)
    if dims is None or not isinstance(dims[0], int) or not isinstance(dims[1], int):
        return "the number of channels is not known"
    outputs, inputs = dims[0], dims[1] * groups
    if inputs <= outputs or outputs // groups >= _CHANNELS:
        return None
    return f"{inputs} channels would be averaged in place of {outputs}"
