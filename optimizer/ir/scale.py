"""Putting a normalization into the place of its formula, with the scale and the bias that stand inside or after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Content, Editor, Scope
from optimizer.ir.match import broadcast_constant, either_order, producer, remove_dead, survivor
from optimizer.ir.normalization import Root, refusal_of
from optimizer.ir.query import array, constant, input_at, int_attribute, is_op, only_user

__all__ = ["Formula", "absorb_bias", "absorb_cast", "absorb_factor", "as_value", "normalize"]

_SCALE, _BIAS = 1, 2
"""Their places among the inputs of a normalization."""


@dataclass(frozen=True)
class Formula:
    """A normalization as an exporter wrote it.

    Attributes:
        x: What is normalized.
        root: What it is divided by.
        factor: What it is multiplied by, if it is.
        bias: What is added in the end, if anything is.
        nodes: All that compute it, without the last.
    """

    x: ir.Value
    root: Root
    factor: ir.Value | None
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]


def normalize(editor: Editor, scope: Scope, node: ir.Node, op_type: str, formula: Formula) -> None:
    """Put one node `op_type` in the place of a formula, of which `node` is the last one, or say why it cannot be."""
    new = _normalization(editor, scope, node, op_type, formula)
    if isinstance(new, str):
        editor.miss(node, new)
        return
    editor.substitute(node, new, formula.nodes)
    remove_dead(editor, formula.nodes)


def _normalization(editor: Editor, scope: Scope, node: ir.Node, op_type: str, formula: Formula) -> ir.Node | str:
    x, axes, reduction = formula.x, formula.root.mean.axes, formula.root.mean.nodes[-1]
    refusal = refusal_of(editor, x, axes)
    if refusal is not None:
        return refusal
    stays = survivor(reduction, node, formula.nodes)
    if stays is not None:
        return f"{stays}, so {reduction.op_type} {reduction.outputs[0].name!r} would be computed twice"
    scale = _fitting(editor, x, axes[0], formula.factor)
    if scale is None:
        return f"the factor {_name(formula.factor)!r} has not the shape of the normalized axes"
    bias = None if formula.bias is None else _fitting(editor, x, axes[0], formula.bias)
    if bias is None and formula.bias is not None:
        return f"the summand {_name(formula.bias)!r} has not the shape of the normalized axes"
    inputs = [x, as_value(editor, scope, node, f"{node.outputs[0].name}_scale", scale)]
    if bias is not None:
        inputs.append(as_value(editor, scope, node, _name(formula.bias), bias))
    return ir.node(op_type, inputs, _attributes(editor, x, axes[0], formula.root.epsilon))


def _attributes(editor: Editor, x: ir.Value, axis: int, epsilon: float) -> dict[str, int | float]:
    """Of a node that normalizes `x` over its axes from `axis` on, with the precision that the formula had."""
    dims, dtype = editor.shapes.dims(x), editor.shapes.dtype(x)
    assert dims is not None and dtype is not None, "it has been checked"
    attributes: dict[str, int | float] = {"axis": axis - len(dims), "epsilon": float(np.float32(epsilon))}
    if dtype != ir.DataType.FLOAT:
        attributes["stash_type"] = dtype.value
    return attributes


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name


def _fitting(editor: Editor, x: ir.Value, axis: int, factor: ir.Value | None) -> ir.Value | Content | None:
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
    """A value as it is, elements as a constant that `node` may use: made in the last moment, since it is a change."""
    return fit if isinstance(fit, ir.Value) else editor.constant(scope, node, name, fit)


def absorb_factor(editor: Editor, scope: Scope, node: ir.Node, op_type: str) -> bool:
    """`Mul(normalization with a scale of ones and no bias, g)`: `g` becomes the scale."""
    return is_op(node, "Mul") and _absorb(editor, scope, node, op_type, _SCALE)


def absorb_bias(editor: Editor, scope: Scope, node: ir.Node, op_type: str) -> bool:
    """`Add(normalization without a bias, b)`: `b` becomes the bias."""
    return is_op(node, "Add") and _absorb(editor, scope, node, op_type, _BIAS)


def _absorb(editor: Editor, scope: Scope, node: ir.Node, op_type: str, place: int) -> bool:
    for value, operand in either_order(node):
        inner = producer(value, node.graph, op_type)
        if inner is None or only_user(value) is not node or input_at(inner, _BIAS) is not None:
            continue
        if place == _SCALE and not _is_one(input_at(inner, _SCALE)):
            continue
        x = inner.inputs[0]
        dims = editor.shapes.dims(x)
        if x is None or dims is None or editor.shapes.dtype(operand) != editor.shapes.dtype(x):
            continue
        fit = _fitting(editor, x, int_attribute(inner, "axis", -1) % len(dims), operand)
        if fit is None or len([output for output in inner.outputs if output.name]) != 1:
            continue
        inputs = [*inner.inputs[:place], as_value(editor, scope, node, operand.name, fit)]
        editor.substitute(node, ir.Node("", op_type, inputs, inner.attributes.copy()), [inner])
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
