"""Attention as ONNX Runtime's MultiHeadAttention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.provenance import inherit
from optimizer.ir.query import float_attribute, has_users, input_at, int_attribute
from optimizer.onnx_limits import CONTRIB

__all__ = ["multi_head_attention"]


def multi_head_attention(editor: Editor, scope: Scope, node: ir.Node) -> None:
    """Replace an `Attention` of packed heads, if there is the same in ONNX Runtime's operator."""
    query, key, value = (editor.shapes.dims(v) for v in node.inputs[:3])
    heads = int_attribute(node, "q_num_heads", 0)
    if query is None or key is None or value is None or not len(query) == len(key) == len(value) == 3:
        return
    if heads < 1 or int_attribute(node, "kv_num_heads", 0) != heads or float_attribute(node, "softcap", 0.0):
        return
    if any(input_at(node, index) is not None for index in range(4, 7)) or has_users(node.outputs[1:]):
        return
    mask, causal = input_at(node, 3), int_attribute(node, "is_causal", 0)
    if causal and (query[1] != key[1] or mask is not None):
        return
    attributes: dict[str, int | float] = {"num_heads": heads, "unidirectional": causal}
    if "scale" in node.attributes:
        attributes["scale"] = float_attribute(node, "scale", 1.0)
    inputs = [*node.inputs[:3]]
    visible: ir.Value | None = None
    if mask is not None:
        sizes, dtype = editor.shapes.dims(mask), editor.shapes.dtype(mask)
        # The sizes of the scores; one for all sequences or heads will do.
        if sizes is None or not 2 <= len(sizes) <= 4 or tuple(sizes[-2:]) != (query[1], key[1]):
            return
        outer = [1] * (4 - len(sizes)) + list(sizes[:-2])
        if outer[0] not in (1, query[0]) or outer[1] not in (1, heads):
            return
        if dtype not in (ir.DataType.BOOL, ir.DataType.FLOAT) or (dtype == ir.DataType.BOOL and outer[1] != 1):
            return
        new_axes = np.arange(4 - len(sizes))
        if new_axes.size:
            mask = _put(editor, node, "Unsqueeze", [mask, editor.constant(scope, node, "axes", new_axes)])
        if dtype == ir.DataType.BOOL:
            mask, visible = _as_numbers(editor, scope, node, mask)
        inputs += [None, None, mask]
    new = ir.node("MultiHeadAttention", inputs, attributes, domain=CONTRIB)
    if visible is None:
        editor.substitute(node, new)
        return
    inherit(new, [node])
    new.name, new.outputs[0].name = node.name, editor.fresh_name(f"{node.outputs[0].name}_all_rows")
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_before(node, new)
    editor.substitute(node, ir.node("Mul", [new.outputs[0], visible], name=f"{node.name}/visible"))


def _as_numbers(editor: Editor, scope: Scope, node: ir.Node, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """What is added to the scores, and 1 for each row of which something is visible, else 0, as [batch, rows, 1].

    A row of which nothing is visible would be NaN with infinities, and a mean of all values with large numbers.
    """

    def number(name: str, value: float) -> ir.Value:
        return editor.constant(scope, node, name, np.array(value, np.float32))

    bias = _put(editor, node, "Where", [mask, number("seen", 0.0), number("hidden", float(np.finfo(np.float32).min))])
    ones = _put(editor, node, "Cast", [mask], {"to": ir.DataType.FLOAT.value})
    last = editor.constant(scope, node, "keys", np.array([-1]))
    rows = _put(editor, node, "ReduceMax", [ones, last])
    return bias, _put(editor, node, "Squeeze", [rows, editor.constant(scope, node, "heads", np.array([1]))])


def _put(
    editor: Editor, node: ir.Node, op_type: str, inputs: list[ir.Value], attributes: dict[str, int] | None = None
) -> ir.Value:
    new = ir.node(op_type, inputs, attributes or {})
    inherit(new, [node])
    new.outputs[0].name = editor.fresh_name(f"{node.outputs[0].name}_{op_type.lower()}")
    new.name = new.outputs[0].name
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_before(node, new)
    editor.modified = True
    return new.outputs[0]
