"""Which passes run for a target, and in which order."""

from __future__ import annotations

from optimizer.pass_manager import Fixpoint, Pass
from passes.deduplicate_initializers import DeduplicateInitializers
from passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from passes.eliminate_identities import EliminateIdentities
from passes.fold_constants import FoldConstants
from passes.infer_shapes import InferShapes
from passes.lift_constants import LiftConstants
from passes.merge_reshapes import MergeReshapes
from passes.merge_transposes import MergeTransposes
from passes.remove_unused import RemoveUnused
from passes.simplify_shapes import SimplifyShapes

__all__ = ["default_pipeline"]


def default_pipeline(target_kind: str) -> list[Pass]:
    """The passes for a target, in order."""
    del target_kind
    return [
        LiftConstants(),
        RemoveUnused(),
        Fixpoint(
            (
                SimplifyShapes(),
                FoldConstants(),
                EliminateIdentities(),
                MergeTransposes(),
                MergeReshapes(),
                EliminateCommonSubexpressions(),
                RemoveUnused(),
            )
        ),
        DeduplicateInitializers(),
        InferShapes(),
    ]
