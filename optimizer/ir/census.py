"""The census of fused operators: a pass may not silently undo a fusion.

A fused operator does in one node what ONNX can also say in several. It is undone when the node is gone and two or more
new nodes do its work, none of them a fused operator. A pass that means to do that says so in its class:

    undoes: ClassVar[frozenset[str]] = frozenset({"Attention"})
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

import onnx_ir as ir

from optimizer.ir.provenance import label, origins
from optimizer.ir.walk import all_nodes

__all__ = ["FUSED", "fused_operators", "undone_fusions"]

# fmt: off
FUSED = frozenset({
    "Attention", "Celu", "GRU", "Gelu", "GroupNormalization", "HardSwish", "InstanceNormalization", "LSTM",
    "LayerNormalization", "LinearAttention", "LogSoftmax", "MeanVarianceNormalization", "Mish", "MultiHeadAttention",
    "RMSNormalization", "RNN", "RotaryEmbedding", "SkipLayerNormalization", "Softmax", "Swish",
})
# fmt: on
_COUNT_FOR_NOTHING = frozenset({"Cast", "Constant", "Identity"})


def fused_operators(model: ir.Model) -> Counter[str]:
    """How many there are of each fused operator, in all graphs of the model."""
    return Counter(node.op_type for node in all_nodes(model) if node.op_type in FUSED)


def undone_fusions(before: ir.Model, after: ir.Model, allowed: Set[str] = frozenset()) -> list[str]:
    """The labels of the fused nodes of `before` that `after` has taken apart.

    Args:
        before: The nodes have their origins (`optimizer.ir.provenance`).
        after: The same model after a pass.
        allowed: Operators that the pass may take apart.
    """
    suspects = [node for node in all_nodes(before) if node.op_type in FUSED - allowed]
    if not suspects:
        return []
    heirs: dict[str, list[ir.Node]] = {}
    for node in all_nodes(after):
        for origin in origins(node):
            heirs.setdefault(origin, []).append(node)
    old = {label(node) for node in all_nodes(before)}
    return [label(node) for node in suspects if _is_undone(node, heirs, old)]


def _is_undone(fused: ir.Node, heirs: dict[str, list[ir.Node]], old: set[str]) -> bool:
    found = {id(heir): heir for origin in origins(fused) for heir in heirs.get(origin, ())}.values()
    if any(heir.op_type in FUSED for heir in found):
        return False
    new = [heir for heir in found if label(heir) not in old and heir.op_type not in _COUNT_FOR_NOTHING]
    return len(new) + sum(label(heir) == label(fused) for heir in found) >= 2
