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
from optimizer.ir.match import either_order, is_same, producer
from optimizer.ir.normalization import Centred, Quotient, Refusal, Root, centred, inverse_root, quotient
from optimizer.ir.query import input_at, is_op
from optimizer.ir.scale import Formula, absorb_bias, absorb_cast, absorb_factor, normalize
from optimizer.pass_manager import Pass

__all__ = ["FuseLayerNorm"]

_NAME = "LayerNormalization"


@dataclasses.dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Fuses the standardization of the last axes."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done."""
        return rewrite_nodes(model, _fuse, ("Add", "Cast", "Div", "Mul"))


def _fuse(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if scope.opset < 17 or not is_op(node, "Add", "Cast", "Div", "Mul"):
        return
    if any(absorb(editor, scope, node, _NAME) for absorb in (absorb_cast, absorb_factor, absorb_bias)):
        return
    if node.op_type == "Add":
        _fuse_distributed(editor, scope, node)
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
                _normalize(editor, scope, node, middle, Formula(middle.x, found.root, found.factor, None, nodes))


def _normalize(editor: Editor, scope: Scope, node: ir.Node, middle: Centred, formula: Formula) -> None:
    centre, spread = middle.mean.axes, formula.root.mean.axes
    if centre != spread:
        editor.miss(node, f"the mean is over the axes {list(centre)}, the variance over {list(spread)}")
        return
    normalize(editor, scope, node, _NAME, formula)


# --- 2. x * m + (b - mean * m) ---


def _fuse_distributed(editor: Editor, scope: Scope, node: ir.Node) -> None:
    for product, shift in either_order(node):
        times, minus = producer(product, node.graph, "Mul"), producer(shift, node.graph, "Sub")
        if times is None or minus is None:
            continue
        for x, multiplier in either_order(times):
            match = _distributed(editor, x, multiplier, times, minus)
            if match is not None:
                _normalize(editor, scope, node, *match)
                return


def _distributed(
    editor: Editor, x: ir.Value, multiplier: ir.Value, times: ir.Node, minus: ir.Node
) -> tuple[Centred, Formula] | None:
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
            return middle, Formula(middle.x, root, factor, bias, nodes)
    return None
