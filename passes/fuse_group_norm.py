"""Fuse the standardization of groups of channels into `GroupNormalization`.

`x` is `[N, C, ...]`, `G` the number of groups.

1. `Reshape(x, [N, G, -1])`, then `InstanceNormalization` with a scale of ones and a bias of zeros, or
   `LayerNormalization` over all axes behind `G`, then `Reshape` to the shape of `x`  ->  `GroupNormalization(x)` with a
   scale of ones and a bias of zeros
2. `GroupNormalization(x) * g` takes `g` as its scale while that is ones and the bias is zeros.
3. `GroupNormalization(x) + b` takes `b` as its bias while that is zeros.

It is done when

1. `C` is known and `G` divides it;
2. the groups are consecutive channels: the first Reshape keeps `N` and splits `C`;
3. nothing else needs the standardized groups: they would be computed twice;
4. the factor and the summand are `[C, 1, ...]`, or constants that can be stretched to it.

In this form `GroupNormalization` is a standard operator since opset 21.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from optimizer.ir.edit import Content, Editor, Scope, rewrite_nodes
from optimizer.ir.match import either_order, producer, remove_dead
from optimizer.ir.query import FLOATS, array, constant, float_attribute, input_at, int_attribute, is_op, only_user
from optimizer.ir.scale import as_value
from optimizer.pass_manager import Pass

__all__ = ["FuseGroupNorm"]

_NAME = "GroupNormalization"
_EPSILON = float(np.float32(1e-5))


@dataclasses.dataclass(frozen=True)
class FuseGroupNorm(Pass):
    """Fuses the normalization of groups of channels."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done."""
        return rewrite_nodes(model, _fuse, ("Add", "Mul", "Reshape"))


def _fuse(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if scope.opset < 21:
        return
    if is_op(node, "Mul"):
        _absorb(editor, scope, node, 1)
    elif is_op(node, "Add"):
        _absorb(editor, scope, node, 2)
    elif is_op(node, "Reshape"):
        _standardize(editor, scope, node)


# --- 1. The standardization ---


def _standardize(editor: Editor, scope: Scope, node: ir.Node) -> None:
    inner = producer(node.inputs[0], node.graph, "InstanceNormalization", "LayerNormalization")
    split = None if inner is None else producer(inner.inputs[0], node.graph, "Reshape")
    if inner is None or split is None or split.inputs[0] is None:
        return
    x = split.inputs[0]
    dims, grouped = editor.shapes.dims(x), editor.shapes.dims(split.outputs[0])
    if dims is None or grouped is None or len(dims) < 3 or len(grouped) < 3:
        return
    if dims != editor.shapes.dims(node.outputs[0]):
        return
    refusal = _refusal(editor, node, inner, x)
    if refusal is not None:
        editor.miss(node, refusal)
        return
    channels, groups, dtype = dims[1], grouped[1], editor.shapes.dtype(x)
    assert isinstance(channels, int) and isinstance(groups, int) and dtype is not None, "it has been checked"
    name = node.outputs[0].name
    scale = editor.constant(scope, node, f"{name}_scale", np.ones(channels, dtype.numpy()))
    bias = editor.constant(scope, node, f"{name}_bias", np.zeros(channels, dtype.numpy()))
    attributes: dict[str, int | float] = {"epsilon": float_attribute(inner, "epsilon", _EPSILON), "num_groups": groups}
    stash = inner.attributes.get("stash_type")
    if stash is not None and stash.as_int() != 1:
        attributes["stash_type"] = stash.as_int()
    editor.substitute(node, ir.node(_NAME, [x, scale, bias], attributes), [inner, split])
    remove_dead(editor, [inner, split])


def _refusal(editor: Editor, node: ir.Node, inner: ir.Node, x: ir.Value) -> str | None:
    dims, grouped = editor.shapes.dims(x) or (), editor.shapes.dims(inner.inputs[0]) or ()
    channels, groups = dims[1], grouped[1]
    if not isinstance(channels, int) or not isinstance(groups, int):
        return f"the number of channels of {x.name!r} or of groups is not known"
    if grouped[0] != dims[0] or groups == 0 or channels % groups:
        return f"{_name(inner.inputs[0])!r} is not made of {groups} groups of channels of {x.name!r}"
    if editor.shapes.dtype(x) not in FLOATS:
        return f"the type of {x.name!r} is not a known floating-point type"
    if only_user(inner.outputs[0]) is not node or any(output.name for output in inner.outputs[1:]):
        return f"{inner.outputs[0].name!r} is needed elsewhere too, so it would be computed twice"
    if inner.op_type == "LayerNormalization" and int_attribute(inner, "axis", -1) % len(grouped) != 2:
        return f"{inner.op_type} {inner.outputs[0].name!r} is not over all axes of a group"
    bias = input_at(inner, 2)
    if not _all(input_at(inner, 1), 1) or not (bias is None or _all(bias, 0)):
        return f"{inner.op_type} {inner.outputs[0].name!r} scales or shifts whole groups"
    return None


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name


def _all(value: ir.Value | None, number: int) -> bool:
    elements = array(value)
    return elements is not None and bool((elements == number).all())


# --- 2, 3. Scale and bias ---


def _absorb(editor: Editor, scope: Scope, node: ir.Node, index: int) -> None:
    for value, operand in either_order(node):
        inner = producer(value, node.graph, _NAME)
        if inner is None or only_user(value) is not node or not _all(input_at(inner, 2), 0):
            continue
        if index == 1 and not _all(input_at(inner, 1), 1):
            continue
        fit = _per_channel(editor, inner.inputs[0], operand)
        if fit is None:
            continue
        inputs = list(inner.inputs)
        inputs[index] = as_value(editor, scope, node, operand.name, fit)
        editor.substitute(node, ir.Node("", _NAME, inputs, inner.attributes.copy()), [inner])
        remove_dead(editor, [inner])
        return


def _per_channel(editor: Editor, x: ir.Value | None, operand: ir.Value) -> Content | None:
    """A constant that broadcasts against `x` as one number for each channel."""
    dims, tensor = editor.shapes.dims(x), constant(operand)
    if dims is None or tensor is None or not isinstance(dims[1], int) or tensor.dtype != editor.shapes.dtype(x):
        return None
    shape = tensor.shape.numpy()
    padded = (1,) * (len(dims) - len(shape)) + tuple(shape)
    if len(shape) > len(dims) or padded[1] not in (1, dims[1]) or any(size != 1 for size in (padded[0], *padded[2:])):
        return None
    return np.ascontiguousarray(np.broadcast_to(tensor.numpy().reshape(-1), (dims[1],)))
