"""How two models differ: which nodes were added, removed, fused or changed, and which weights.

Not called `diff`: that is the function, and a package of this name would take its place in `optimizer` when imported.
"""

from __future__ import annotations

from optimizer.model_diff.compare import compare_sides, diff, diff_artifact
from optimizer.model_diff.facts import Side, read_side
from optimizer.model_diff.result import InterfaceChange, ModelDiff, NodeMatch
from optimizer.model_diff.weights import WeightChange

__all__ = [
    "InterfaceChange",
    "ModelDiff",
    "NodeMatch",
    "Side",
    "WeightChange",
    "compare_sides",
    "diff",
    "diff_artifact",
    "read_side",
]
