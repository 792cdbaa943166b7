"""The scale of a normalization: made of ones, and taken over from a multiplication after it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Content, Editor, Scope
from optimizer.ir.match import broadcast_constant, either_order, producer, remove_dead
from optimizer.ir.query import array, constant, input_at, int_attribute, is_op, only_user

__all__ = ["absorb_cast", "absorb_factor", "as_value", "fitting", "normalization"]


def normalization(editor: Editor, op_type: str, x: ir.Value, axis: int, epsilon: float, scale: ir.Value) -> ir.Node:
    """A node that normalizes `x` over its axes from `axis` on, with the precision that the formula had."""
    dims, dtype = editor.shapes.dims(x), editor.shapes.dtype(x)
    assert dims is not None and dtype is not None, "it has been checked"
    attributes: dict[str, int | float] = {"axis": axis - len(dims), "epsilon": float(np.float32(epsilon))}
    if dtype != ir.DataType.FLOAT:
        attributes["stash_type"] = dtype.value
    return ir.node(op_type, [x, scale], attributes)


def fitting(editor: Editor, x: ir.Value, axis: int, factor: ir.Value | None) -> ir.Value | Content | None:
    """The scale that multiplies `x`, which is normalized from `axis` on, by `factor`, or by 1 if there is none.

    Returns:
        A value, or the elements of a constant that is to be made, of the shape of the normalized axes; `None` when
        `factor` is of another shape or differs from row to row.
    """
    dims, dtype = editor.shapes.dims(x), editor.shapes.dtype(x)
    shape = tuple(size for size in (dims or ())[axis:] if isinstance(size, int))
    if dims is None or dtype is None or len(shape) != len(dims) - axis:
        return None
    if factor is None:
        return np.ones(shape, dtype.numpy())
    if editor.shapes.static(factor) == shape:
        return factor
    tensor, elements = constant(factor), broadcast_constant(factor, shape)
    return None if tensor is None or len(tensor.shape) > len(dims) else elements


def as_value(editor: Editor, scope: Scope, node: ir.Node, name: str | None, fit: ir.Value | Content) -> ir.Value:
    """What `fitting` found, as a value that `node` may use; in the last moment, since a constant is a change."""
    return fit if isinstance(fit, ir.Value) else editor.constant(scope, node, name, fit)


def absorb_factor(editor: Editor, scope: Scope, node: ir.Node, op_type: str) -> bool:
    """`Mul(normalization with a scale of ones, g)`: `g` becomes the scale."""
    if not is_op(node, "Mul"):
        return False
    for value, factor in either_order(node):
        inner = producer(value, node.graph, op_type)
        if inner is None or only_user(value) is not node or input_at(inner, 2) is not None or inner.inputs[0] is None:
            continue
        if not _is_one(input_at(inner, 1)) or len([item for item in inner.outputs if item.name]) != 1:
            continue
        x = inner.inputs[0]
        dims = editor.shapes.dims(x)
        axis = int_attribute(inner, "axis", -1)
        if dims is None or editor.shapes.dtype(factor) != editor.shapes.dtype(x):
            continue
        fit = fitting(editor, x, axis % len(dims), factor)
        if fit is not None:
            scale = as_value(editor, scope, node, factor.name, fit)
            new = ir.Node("", op_type, [x, scale], inner.attributes.copy())
            editor.substitute(node, new, [inner])
            remove_dead(editor, [inner])
            return True
    return False


def absorb_cast(editor: Editor, scope: Scope, node: ir.Node, op_type: str) -> bool:
    """`Cast(normalization(Cast(x)))`, computed in float32 of a half-precision `x`, is what `stash_type` is for."""
    inner = producer(input_at(node, 0), node.graph, op_type) if is_op(node, "Cast") else None
    widening = None if inner is None else producer(input_at(inner, 0), node.graph, "Cast")
    if inner is None or widening is None or only_user(inner.outputs[0]) is not node or widening.inputs[0] is None:
        return False
    to, x = ir.DataType(int_attribute(node, "to", 0)), widening.inputs[0]
    ones = array(input_at(inner, 1))
    if to not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) or editor.shapes.dtype(x) != to:
        return False
    if editor.shapes.dtype(inner.inputs[0]) != ir.DataType.FLOAT or not _is_one(input_at(inner, 1)) or ones is None:
        return False
    if len(inner.inputs) > 2 or len([item for item in inner.outputs if item.name]) != 1:
        return False
    attributes = {name: value for name, value in inner.attributes.items() if name != "stash_type"}
    scale = editor.constant(scope, node, f"{node.outputs[0].name}_scale", ones.astype(to.numpy()))
    editor.substitute(node, ir.Node("", op_type, [x, scale], attributes), [inner, widening])
    remove_dead(editor, [inner, widening])
    return True


def _is_one(value: ir.Value | None) -> bool:
    elements = array(value)
    return elements is not None and bool((elements == 1).all())
