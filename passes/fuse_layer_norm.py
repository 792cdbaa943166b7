"""Fuse the standardization of the last axes into `LayerNormalization`.

With `d = x - mean(x)` and `v = mean(d * d)`:

1. `d / Sqrt(v + epsilon)`, in any way to write it (`optimizer.ir.normalization`), alone or with a factor inside,
   becomes `LayerNormalization(x)` with a scale of ones or with that factor.
2. `x * m + (b - mean(x) * m)` with `m = g / Sqrt(v + epsilon)`, as TensorFlow writes it, becomes
   `LayerNormalization(x, g, b)`.
3. `Cast` to half precision of the normalization of a `Cast` to float32 becomes one in half precision: it computes in
   float32 by itself.
4. `LayerNormalization(x) * g` takes `g` as its scale.
5. `LayerNormalization(x) + b` takes `b` as its bias.

It is done when

1. the axes are the same for both means, are the last ones, are constant and stay with size 1, and their sizes are
   known;
2. epsilon is constant, is not negative and stands under the root;
3. nothing else needs the variance: it would be computed twice;
4. the factor and the bias have the shape of the normalized axes, or are constants that can be stretched to it.

`LayerNormalization` is a standard operator since opset 17.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.match import either_order, is_same, producer, remove_dead, survivor
from optimizer.ir.normalization import Centred, Quotient, Refusal, Root, centred, inverse_root, quotient, refusal_of
from optimizer.ir.query import input_at, int_attribute, is_op, only_user
from optimizer.ir.scale import absorb_cast, absorb_factor, as_value, fitting, normalization
from optimizer.pass_manager import Pass

__all__ = ["FuseLayerNorm"]

_NAME = "LayerNormalization"


@dataclasses.dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Fuses the standardization of the last axes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done."""
        return rewrite_nodes(model, _fuse)


@dataclasses.dataclass(frozen=True)
class _Match:
    """What becomes one node."""

    middle: Centred
    root: Root
    factor: ir.Value | None
    bias: ir.Value | None
    nodes: tuple[ir.Node, ...]


def _fuse(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if scope.opset < 17 or not is_op(node, "Add", "Cast", "Div", "Mul"):
        return
    if node.op_type == "Add":
        if not _absorb_bias(editor, scope, node):
            _fuse_distributed(editor, scope, node)
        return
    if absorb_cast(editor, scope, node, _NAME) or absorb_factor(editor, scope, node, _NAME):
        return
    match quotient(editor, node):
        case Refusal(reason, x):
            if isinstance(centred(editor, x), Centred):
                editor.miss(node, reason)
        case Quotient() as found:
            middle = centred(editor, found.x)
            if isinstance(middle, Refusal):
                editor.miss(node, middle.reason)
            elif middle is not None:
                nodes = (*found.nodes, middle.node, *middle.mean.nodes)
                _normalize(editor, scope, node, _Match(middle, found.root, found.factor, None, nodes))


def _normalize(editor: Editor, scope: Scope, node: ir.Node, match: _Match) -> None:
    new = _replacement(editor, scope, node, match)
    if isinstance(new, str):
        editor.miss(node, new)
        return
    editor.substitute(node, new, match.nodes)
    remove_dead(editor, match.nodes)


def _replacement(editor: Editor, scope: Scope, node: ir.Node, match: _Match) -> ir.Node | str:
    x, axes = match.middle.x, match.root.mean.axes
    refusal = refusal_of(editor, x, axes)
    if refusal is not None:
        return refusal
    if match.middle.mean.axes != axes:
        return f"the mean is over the axes {list(match.middle.mean.axes)}, the variance over {list(axes)}"
    stays = survivor(match.root.mean.nodes[-1], node, match.nodes)
    if stays is not None:
        return f"{stays}, so the variance would be computed twice"
    scale = fitting(editor, x, axes[0], match.factor)
    if scale is None:
        return f"the factor {_name(match.factor)!r} has not the shape of the normalized axes"
    bias = None if match.bias is None else fitting(editor, x, axes[0], match.bias)
    if bias is None and match.bias is not None:
        return f"the summand {_name(match.bias)!r} has not the shape of the normalized axes"
    weight = as_value(editor, scope, node, f"{node.outputs[0].name}_scale", scale)
    new = normalization(editor, _NAME, x, axes[0], match.root.epsilon, weight)
    if bias is not None:
        new.resize_inputs(3)
        new.replace_input_with(2, as_value(editor, scope, node, _name(match.bias), bias))
    return new


def _name(value: ir.Value | None) -> str:
    return "" if value is None or value.name is None else value.name


# --- 2. x * m + (b - mean * m) ---


def _fuse_distributed(editor: Editor, scope: Scope, node: ir.Node) -> None:
    for product, shift in either_order(node):
        times, minus = producer(product, node.graph, "Mul"), producer(shift, node.graph, "Sub")
        if times is None or minus is None:
            continue
        for x, multiplier in either_order(times):
            match = _distributed(editor, x, multiplier, times, minus)
            if isinstance(match, _Match):
                _normalize(editor, scope, node, match)
                return


def _distributed(editor: Editor, x: ir.Value, multiplier: ir.Value, times: ir.Node, minus: ir.Node) -> _Match | None:
    bias, subtracted = minus.inputs[0], producer(input_at(minus, 1), minus.graph, "Mul")
    if subtracted is None or bias is None:
        return None
    means = [mean for mean, other in either_order(subtracted) if is_same(other, multiplier)]
    scaled = producer(multiplier, times.graph, "Mul")
    sides = [(multiplier, None), *([] if scaled is None else either_order(scaled))]
    for inverse, factor in sides:
        root = inverse_root(editor, inverse, times.graph, -0.5)
        middle = centred(editor, root.x) if isinstance(root, Root) else None
        if not isinstance(root, Root) or not isinstance(middle, Centred) or not is_same(middle.x, x):
            continue
        if any(mean is middle.mean.nodes[0].outputs[0] for mean in means):
            extra = () if scaled is None else (scaled,)
            nodes = (times, minus, subtracted, *extra, *root.nodes, middle.node, *middle.mean.nodes)
            return _Match(middle, root, factor, bias, nodes)
    return None


# --- 5. The bias ---


def _absorb_bias(editor: Editor, scope: Scope, node: ir.Node) -> bool:
    for value, bias in either_order(node):
        inner = producer(value, node.graph, _NAME)
        if inner is None or only_user(value) is not node or input_at(inner, 2) is not None or inner.inputs[0] is None:
            continue
        dims = editor.shapes.dims(inner.inputs[0])
        dtype = editor.shapes.dtype(inner.inputs[0])
        if dims is None or editor.shapes.dtype(bias) != dtype or len([item for item in inner.outputs if item.name]) > 1:
            continue
        axis = int_attribute(inner, "axis", -1) % len(dims)
        fit = fitting(editor, inner.inputs[0], axis, bias)
        if fit is not None:
            summand = as_value(editor, scope, node, bias.name, fit)
            new = ir.Node("", _NAME, [inner.inputs[0], inner.inputs[1], summand], inner.attributes.copy())
            editor.substitute(node, new, [inner])
            remove_dead(editor, [inner])
            return True
    return False
