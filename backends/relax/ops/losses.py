"""Losses of a classification: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss.

Shape letters: N batch, C classes, S further axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int, get_str
from backends.relax.emitter import Emitter
from backends.relax.indices import checked_places
from backends.relax.ops.softmax import log_softmax_rows
from backends.relax.registry import emits
from backends.relax.values import Refused, Result, prim

Index = Sequence[tirx.Expr]


@emits("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(ctx: Emitter, node: ir.Node) -> Result:
    """The negated score of the target class, weighted and reduced."""
    return _loss(ctx, node, ctx.x(node.inputs[0]))


@emits("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(ctx: Emitter, node: ir.Node) -> Sequence[Result | None]:
    """The same of the logarithm of a softmax over the classes, which is the second output."""
    scores = ctx.te(log_softmax_rows, ctx.x(node.inputs[0]), 1)
    return [_loss(ctx, node, scores), scores]


def _loss(ctx: Emitter, node: ir.Node, scores: relax.Var) -> relax.Expr:
    target = node.inputs[1]
    weight = node.inputs[2] if len(node.inputs) > 2 else None
    reduction = get_str(node, "reduction", "mean")
    if reduction not in ("none", "sum", "mean"):
        raise Refused(f"reduction {reduction!r}")
    ignored = get_int(node, "ignore_index", 0) if "ignore_index" in node.attributes else None
    target_, classes = ctx.x(target), ctx.shape(node.inputs[0])[1]
    places = checked_places(ctx, target, [classes], from_end=False, ignored=ignored)
    weights = [] if weight is None else [ctx.x(weight)]
    dtype = str(scores.ty.dtype)

    def share(target_NS: te.Tensor, place: tirx.Expr, weight_C: Sequence[te.Tensor], index: Index) -> tirx.Expr:
        value = weight_C[0](place) if weight_C else tirx.const(1, dtype)
        if ignored is None:
            return value
        is_ignored = tirx.EQ(target_NS(*index), tirx.const(ignored, str(target_NS.dtype)))
        return tirx.Select(is_ignored, tirx.const(0, dtype), value)

    def losses(scores_NCS: te.Tensor, target_NS: te.Tensor, place_NS: te.Tensor, *weight_C: te.Tensor) -> te.Tensor:
        def element(*i: tirx.Expr) -> tirx.Expr:
            place = prim(place_NS(*i))
            part = share(target_NS, place, weight_C, i)
            # An ignored score may be infinite: select rather than multiply.
            loss = -scores_NCS(i[0], place, *i[1:]) * part
            return tirx.Select(tirx.EQ(part, tirx.const(0, dtype)), tirx.const(0, dtype), loss)

        return te.compute(target_NS.shape, element, name="loss")

    def shares(target_NS: te.Tensor, place_NS: te.Tensor, *weight_C: te.Tensor) -> te.Tensor:
        return te.compute(target_NS.shape, lambda *i: share(target_NS, prim(place_NS(*i)), weight_C, i), name="share")

    loss = ctx.te(losses, scores, target_, places, *weights)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return relax.op.sum(loss)
    if weight is None and ignored is None:
        return relax.op.mean(loss)
    parts = ctx.te(shares, target_, places, *weights)
    return relax.op.divide(relax.op.sum(loss), relax.op.sum(parts))
