"""Losses of a classification: NegativeLogLikelihoodLoss and SoftmaxCrossEntropyLoss.

Shape letters: N batch, C classes, S further axes.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.attributes import get_int, get_str
from backends.relax.emitter import Emitter
from backends.relax.ops.softmax import log_softmax_rows
from backends.relax.registry import emits
from backends.relax.scalars import cast
from backends.relax.values import Refused, Result, prim


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
    classes = [ctx.x(target)] + ([ctx.x(weight)] if weight is not None else [])
    dtype = str(scores.ty.dtype)

    def share(
        target_: te.Tensor, weight_: Sequence[te.Tensor], limit: tirx.Expr, index: Sequence[tirx.Expr]
    ) -> tirx.Expr:
        value = weight_[0](_class(target_, limit, index)) if weight_ else tirx.const(1, dtype)
        if ignored is None:
            return value
        is_ignored = tirx.EQ(target_(*index), tirx.const(ignored, str(target_.dtype)))
        return tirx.Select(is_ignored, tirx.const(0, dtype), value)

    def losses(scores_NCS: te.Tensor, target_NS: te.Tensor, *weight_C: te.Tensor) -> te.Tensor:
        limit = scores_NCS.shape[1]

        def element(*i: tirx.Expr) -> tirx.Expr:
            score = scores_NCS(i[0], _class(target_NS, limit, i), *i[1:])
            part = share(target_NS, weight_C, limit, i)
            # An ignored score may be infinite: select rather than multiply.
            return tirx.Select(tirx.EQ(part, tirx.const(0, dtype)), tirx.const(0, dtype), -score * part)

        return te.compute(target_NS.shape, element, name="loss")

    def shares(target_NS: te.Tensor, scores_NCS: te.Tensor, *weight_C: te.Tensor) -> te.Tensor:
        limit = scores_NCS.shape[1]
        return te.compute(target_NS.shape, lambda *i: share(target_NS, weight_C, limit, i), name="share")

    loss = ctx.te(losses, scores, *classes)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return relax.op.sum(loss)
    if weight is None and ignored is None:
        return relax.op.mean(loss)
    parts = ctx.te(shares, classes[0], scores, *classes[1:])
    return relax.op.divide(relax.op.sum(loss), relax.op.sum(parts))


def _class(target: te.Tensor, limit: tirx.Expr, index: Sequence[tirx.Expr]) -> tirx.Expr:
    """The target class of an element; one that is ignored may lie anywhere, and is read as some valid one."""
    return tirx.max(tirx.min(cast(target(*index), "int64"), limit - 1), prim(0))
