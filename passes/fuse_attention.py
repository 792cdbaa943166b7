"""Fuse scaled dot product attention into the standard `Attention` operator.

    MatMul(Softmax(f(MatMul(Q, Transpose(K)))), V)  ->  Attention(Q, K, V, mask)

1. `f` may scale by constants, also on Q or K themselves; bend by `c * tanh(x / c)` (soft cap); add masks; choose
   between the scores and a large negative number by a condition; and cast to a wider type for the Softmax. Exporters'
   `Where(IsNaN(p), 0, p)` behind the Softmax is taken in.
2. Keys that are repeated for groups of query heads are not repeated any more (GQA, MQA).
3. A mask that is computed to hide later keys from earlier queries becomes `is_causal`, where that is proved.
4. A cache that is put in front of keys and values becomes `past_key` and `past_value`.
5. Where the heads are cut out of `[B, S, H * D]` and put together again afterwards, `Attention` does that itself; also
   where batch and heads are one axis in between.
6. Probabilities that are used besides are an output of the `Attention`.

2 to 5 are done to an `Attention` that was there before as well. A row that sees nothing gives what it gave before (see
`passes.attention.masks`); the one exception is where the graph itself replaces NaN by 0: NaN that come from the queries
or keys stay NaN then, as in the PyTorch function that is written that way.

It needs opset 23. What the scores are used for besides stands in the way: they do not exist any more afterwards. (An
`Attention` could give them, but in which mode which of them, the versions of the operator do not agree upon.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.query import is_op
from optimizer.pass_manager import Pass
from passes.attention.absorb import absorb
from passes.attention.build import NotFused, Place, sweep
from passes.attention.heads import Operands, Source, check_heads
from passes.attention.layout import Layout, Result, before_product, layout_of
from passes.attention.masks import check_masks, fit_mask, make_mask
from passes.attention.pack import pack_heads
from passes.attention.scores import Bias, Choice, Match, match, softmax_above

__all__ = ["FuseAttention"]

_FIRST_OPSET = 23
_WEIGHTS = 3
"""Which output has the probabilities."""
_AFTER_SOFTMAX = 3
"""The one mode of that output that means the same in every version of the operator."""
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
        fused = rewrite_nodes(model, self._fuse, ("MatMul",))
        # When all are fused: what one has needed besides may have been there for the sake of the others.
        absorbed = rewrite_nodes(model, _absorb, ("Attention",))
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
    late = before_product(scope.graph, found)
    layout = layout_of(shapes, found, operands)
    old = [*found.nodes, *layout.passed]
    place = Place(editor, scope, found.last, old)
    inputs = [place.walk(source.value, source.steps) for source in layout.sources]
    _repeat_single_head(place, operands, inputs)
    mask = _mask(place, found, layout)
    outputs = 1 if layout.weights is None else 1 + _WEIGHTS
    attributes = _attributes(found, found.scale * math.prod(source.factor for source in layout.sources))
    new = ir.node("Attention", [*inputs, *([] if mask is None else [mask])], attributes, num_outputs=outputs)
    place.insert(new, layout.result.value.name)
    new.name = found.last.name or new.name
    for output in new.outputs[1:_WEIGHTS]:
        output.name = ""
    _give(editor, place, layout.result, new.outputs[0])
    if layout.weights is not None:
        _give(editor, place, layout.weights, new.outputs[_WEIGHTS])
    for node in reversed(late):
        scope.graph.remove(node)
        scope.graph.insert_after(found.last, node)
    sweep(editor, old)


def _repeat_single_head(place: Place, operands: Operands, inputs: list[ir.Value]) -> None:
    """Where keys or values have one head and the others have all, a product repeats it; an `Attention` does not."""
    heads = [dims[1] if len(dims) == 4 else 1 for dims in (operands.key, operands.value)]
    for index, count, other in ((1, heads[0], heads[1]), (2, heads[1], heads[0])):
        if count == 1 and isinstance(other, int) and other > 1:
            inputs[index] = place.add("Expand", [inputs[index], place.ints([1, other, 1, 1], "heads")])


def _mask(place: Place, found: Match, layout: Layout) -> ir.Value | None:
    """The mask in the axes of the layout."""
    shapes = place.editor.shapes
    if layout.masks:
        found.masks = [_taken_from(place, mask, layout.masks) for mask in found.masks]
        check_masks(shapes, found, layout.scores)
    mask = make_mask(place, shapes, found)
    return None if mask is None else fit_mask(place, shapes, found, layout.scores, mask)


def _taken_from(place: Place, mask: Bias | Choice, sources: Mapping[ir.Value, Source]) -> Bias | Choice:
    value = mask.value if isinstance(mask, Bias) else mask.condition
    if value not in sources:
        return mask
    new = place.walk(sources[value].value, sources[value].steps)
    if isinstance(mask, Bias):
        return dataclasses.replace(mask, value=new)
    return dataclasses.replace(mask, condition=new)


def _give(editor: Editor, place: Place, result: Result, output: ir.Value) -> None:
    """Let an output take the place and the name of what it has been computed as until now."""
    value = place.walk(output, result.steps)
    name = result.value.name
    editor.replace(result.value, value)
    value.name = name


def _attributes(found: Match, scale: float) -> dict[str, int | float]:
    attributes: dict[str, int | float] = {"scale": scale}
    if found.softcap:
        attributes["softcap"] = found.softcap
    if found.softmax_dtype is not None:
        attributes["softmax_precision"] = int(found.softmax_dtype)
    if found.weights is not None:
        attributes["qk_matmul_output_mode"] = _AFTER_SOFTMAX
    return attributes
