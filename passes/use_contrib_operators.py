"""Say fusions in ONNX Runtime's own operators (domain `com.microsoft`), for a target that asks for them.

    Gelu(x)                                    ->  com.microsoft.Gelu(x), or FastGelu(x) of the tanh form
    LayerNormalization(Add(x, y))              ->  com.microsoft.SkipLayerNormalization(x, y), which gives the sum, too
    RMSNormalization(Add(x, y))                ->  com.microsoft.SkipSimplifiedLayerNormalization(x, y)
    MatMul(x, DequantizeLinear(w of 4 bits))   ->  com.microsoft.MatMulNBits(x, w), and likewise a Gemm
    RotaryEmbedding(x, cos, sin, positions)    ->  com.microsoft.RotaryEmbedding(x, positions, cos, sin)
    Attention(q, k, v, mask)                   ->  com.microsoft.MultiHeadAttention(q, k, v, bias)

They were in ONNX Runtime long before the opsets that have such operators, so a graph for an older opset keeps its
fusions. It is done for float32, and

1. the sum is of two tensors of the same shape, which has two or three axes, and the normalization is over the last;
2. a weight of 4 bits is a constant in blocks along the axis that is summed over, as many as a power of two from 16 on;
   it is multiplied in float32, as in the graph; a Gemm only adds a vector to it;
3. the heads of an attention lie side by side in three axes, as many of keys as of queries; it has no cache and no soft
   cap; if it is causal, there are as many keys as queries and no mask; a mask has the sizes of the scores, but for one
   where there are several sequences or heads. Rows that a mask of truth values hides altogether give 0, as in ONNX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope, rewrite_nodes
from optimizer.ir.provenance import inherit
from optimizer.ir.query import float_attribute, has_users, input_at, int_attribute, is_op, string_attribute
from optimizer.ir.walk import all_nodes
from optimizer.onnx_limits import CONTRIB
from optimizer.pass_manager import Pass
from passes.contrib.attention import multi_head_attention
from passes.contrib.four_bits import matmul_n_bits

__all__ = ["UseContribOperators"]


@dataclasses.dataclass(frozen=True)
class UseContribOperators(Pass):
    """Puts in ONNX Runtime's own operators."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace wherever it can be done."""
        result = rewrite_nodes(model, _replace, tuple(_FORMS))
        owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        if any(node.domain == CONTRIB for node in all_nodes(model)):
            for owner in owners:
                owner.opset_imports.setdefault(CONTRIB, 1)
        return result


def _replace(editor: Editor, scope: Scope, node: ir.Node) -> None:
    form = _FORMS.get(node.op_type)
    if form is None or not is_op(node, node.op_type) or scope.in_function:
        return
    if editor.shapes.dtype(node.inputs[0]) == ir.DataType.FLOAT:
        form(editor, scope, node)


def _gelu(editor: Editor, scope: Scope, node: ir.Node) -> None:
    del scope
    op_type = "FastGelu" if string_attribute(node, "approximate", "none") == "tanh" else "Gelu"
    editor.substitute(node, ir.node(op_type, [node.inputs[0]], domain=CONTRIB))


def _skip_normalization(editor: Editor, scope: Scope, node: ir.Node) -> None:
    del scope
    add = node.inputs[0].producer() if node.inputs[0] is not None else None
    if add is None or not is_op(add, "Add") or add.graph is not node.graph or add.outputs[0].is_graph_output():
        return
    first, second = (editor.shapes.dims(value) for value in add.inputs)
    rank = 0 if first is None else len(first)
    weights = [value for value in node.inputs[1:3] if value is not None]
    if first != second or rank not in (2, 3) or int_attribute(node, "axis", -1) not in (-1, rank - 1):
        return
    if any(value.producer() is not None for value in weights) or has_users(node.outputs[1:]):
        return
    total = add.outputs[0]
    alone = len(total.uses()) == 1
    new = ir.node(
        _SKIPPING[node.op_type],
        [*add.inputs, *weights],
        {"epsilon": float_attribute(node, "epsilon", 1e-5)},
        domain=CONTRIB,
        name=node.name,
        num_outputs=1 if alone else 4,
    )
    inherit(new, [node, add])
    assert node.graph is not None, "the node is in a graph"
    node.graph.insert_before(add, new)  # where whatever else uses the sum comes behind it
    for value in new.outputs:
        value.name = ""
    new.outputs[0].name = node.outputs[0].name
    editor.replace(node.outputs[0], new.outputs[0])
    if not alone:
        new.outputs[3].name = editor.fresh_name(f"{total.name}_sum")
        editor.replace(total, new.outputs[3])
    editor.remove(node)
    editor.remove(add)


def _rotary_embedding(editor: Editor, scope: Scope, node: ir.Node) -> None:
    del scope
    positions = input_at(node, 3)
    if positions is not None and editor.shapes.dtype(positions) == ir.DataType.INT64:
        inputs = [node.inputs[0], positions, *node.inputs[1:3]]
        editor.substitute(node, ir.Node(CONTRIB, "RotaryEmbedding", inputs, node.attributes))


_SKIPPING = {
    "LayerNormalization": "SkipLayerNormalization",
    "RMSNormalization": "SkipSimplifiedLayerNormalization",
}
_FORMS: Mapping[str, Callable[[Editor, Scope, ir.Node], None]] = {
    "Attention": multi_head_attention,
    "Gelu": _gelu,
    "Gemm": matmul_n_bits,
    "LayerNormalization": _skip_normalization,
    "MatMul": matmul_n_bits,
    "RMSNormalization": _skip_normalization,
    "RotaryEmbedding": _rotary_embedding,
}
