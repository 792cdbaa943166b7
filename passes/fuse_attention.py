"""Fuse scaled dot product attention into the standard `Attention` operator.

    MatMul(Softmax(f(MatMul(Q, Transpose(K)))), V)  ->  Attention(Q, K, V, mask)

1. `f` may scale by constants, also on Q or K themselves; bend by `c * tanh(x / c)` (soft cap); add masks; choose
   between the scores and a large negative number by a condition; and cast to a wider type for the Softmax. Exporters'
   `Where(IsNaN(p), 0, p)` behind the Softmax is taken in.
2. Keys that are repeated for groups of query heads are not repeated any more (GQA, MQA).
3. A mask that is computed to hide later keys from earlier queries becomes `is_causal`, where that is proved.
4. A cache that is put in front of keys and values becomes `past_key` and `past_value`.
5. Where the heads are cut out of `[B, S, H * D]` and put together again afterwards, `Attention` does that itself.

2 to 5 are done to an `Attention` that was there before as well. A row that sees nothing gives what it gave before (see
`passes.attention.masks`); the one exception is where the graph itself replaces NaN by 0: NaN that come from the queries
or keys stay NaN then, as in the PyTorch function that is written that way.

It needs opset 23. What the scores are used for besides stands in the way: they do not exist any more afterwards.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import is_op
from optimizer.pass_manager import Pass
from passes.attention.absorb import absorb
from passes.attention.build import NotFused, Place, sweep
from passes.attention.heads import check_heads, source_of
from passes.attention.masks import check_masks, fit_mask, make_mask
from passes.attention.pack import pack_heads
from passes.attention.scores import Match, match, softmax_above

__all__ = ["FuseAttention"]

_FIRST_OPSET = 23
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class FuseAttention(Pass):
    """Fuses attention, and moves what is around an `Attention` into it.

    Attributes:
        half_precision: Whether to fuse what is computed in float16 or bfloat16.
    """

    half_precision: bool = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse wherever it can be done, then simplify what each `Attention` is given."""
        fused = rewrite_nodes(model, self._fuse)
        # When all are fused: what one has needed besides may have been there for the sake of the others.
        absorbed = rewrite_nodes(model, _absorb)
        return dataclasses.replace(fused, modified=fused.modified or absorbed.modified)

    def _fuse(self, editor: Editor, scope: Scope, node: ir.Node) -> None:
        softmax = softmax_above(node)
        if softmax is None:
            return
        try:
            found = match(editor, softmax, node)
            if found is None:
                return
            dtype = editor.shapes.dtype(found.value)
            if dtype in _HALF and not self.half_precision:
                raise NotFused(f"it computes in {dtype.name.lower()}, and half_precision is false")
            _replace(editor, scope, found)
        except NotFused as reason:
            editor.miss(softmax, str(reason))


def _absorb(editor: Editor, scope: Scope, node: ir.Node) -> None:
    if is_op(node, "Attention"):
        pack_heads(editor, scope, absorb(editor, scope, node))


def _replace(editor: Editor, scope: Scope, found: Match) -> None:
    if scope.opset < _FIRST_OPSET:
        raise NotFused(f"opset {scope.opset} has no Attention, opset {_FIRST_OPSET} has")
    shapes = editor.shapes
    operands = check_heads(shapes, found)
    check_masks(shapes, found, operands.scores)
    sources = [source_of(shapes, found.query), source_of(shapes, found.key, transposed=True)]
    sources.append(source_of(shapes, found.value, scaled=False))
    passed = [node for source in sources for node in source.passed]
    place = Place(editor, scope, found.last, [*found.nodes, *passed])
    mask = make_mask(place, shapes, found)
    if mask is not None:
        mask = fit_mask(place, shapes, found, operands.scores, mask)
    inputs = [place.walk(source.value, source.steps) for source in sources]
    scale = found.scale
    for source in sources:
        scale *= source.factor
    attention = ir.node("Attention", [*inputs, *([] if mask is None else [mask])], _attributes(found, scale))
    new = attention
    if operands.missing:
        new = place.behind(attention, "Squeeze", operands.missing)
    editor.substitute(found.last, new, [*found.nodes, *passed])
    sweep(editor, [*found.nodes, *passed])


def _attributes(found: Match, scale: float) -> dict[str, int | float]:
    attributes: dict[str, int | float] = {"scale": scale}
    if found.softcap:
        attributes["softcap"] = found.softcap
    if found.softmax_dtype is not None:
        attributes["softmax_precision"] = int(found.softmax_dtype)
    return attributes
