"""Every pass by name. The name is the class name in kebab case and the file name; a test holds the three together."""

from __future__ import annotations

from optimizer.pass_manager import Pass
from passes.cancel_transposes import CancelTransposes
from passes.convert_float import ConvertFloat
from passes.decompose_einsum import DecomposeEinsum
from passes.deduplicate_initializers import DeduplicateInitializers
from passes.eliminate_broadcasts import EliminateBroadcasts
from passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from passes.eliminate_identities import EliminateIdentities
from passes.eliminate_zero_sums import EliminateZeroSums
from passes.flatten_rows import FlattenRows
from passes.fold_affine import FoldAffine
from passes.fold_batch_norm import FoldBatchNorm
from passes.fold_constant_if import FoldConstantIf
from passes.fold_constants import FoldConstants
from passes.fold_pads import FoldPads
from passes.fuse_attention import FuseAttention
from passes.fuse_gelu import FuseGelu
from passes.fuse_gemm import FuseGemm
from passes.fuse_group_norm import FuseGroupNorm
from passes.fuse_hard_swish import FuseHardSwish
from passes.fuse_layer_norm import FuseLayerNorm
from passes.fuse_rms_norm import FuseRmsNorm
from passes.fuse_rotary_embedding import FuseRotaryEmbedding
from passes.hoist_bias import HoistBias
from passes.hoist_pooling import HoistPooling
from passes.infer_shapes import InferShapes
from passes.inline_functions import InlineFunctions
from passes.lift_constants import LiftConstants
from passes.lower_opset import LowerOpset
from passes.merge_qkv import MergeQkv
from passes.merge_reshapes import MergeReshapes
from passes.merge_slices import MergeSlices
from passes.merge_transposes import MergeTransposes
from passes.mix_precision import MixPrecision
from passes.quantize_int4 import QuantizeInt4
from passes.quantize_int8 import QuantizeInt8
from passes.reduce_strength import ReduceStrength
from passes.remove_unused import RemoveUnused
from passes.replace_cast_like import ReplaceCastLike
from passes.simplify_gathers import SimplifyGathers
from passes.simplify_shapes import SimplifyShapes
from passes.smooth_quant import SmoothQuant
from passes.tile_memory import TileMemory
from passes.unflatten_matmul import UnflattenMatmul
from passes.unflatten_softmax import UnflattenSoftmax
from passes.unpack_sequences import UnpackSequences
from passes.unroll_loops import UnrollLoops
from passes.use_contrib_operators import UseContribOperators

__all__ = ["PASSES"]

PASSES: dict[str, type[Pass]] = {
    "cancel-transposes": CancelTransposes,
    "convert-float": ConvertFloat,
    "decompose-einsum": DecomposeEinsum,
    "deduplicate-initializers": DeduplicateInitializers,
    "eliminate-broadcasts": EliminateBroadcasts,
    "eliminate-common-subexpressions": EliminateCommonSubexpressions,
    "eliminate-identities": EliminateIdentities,
    "eliminate-zero-sums": EliminateZeroSums,
    "flatten-rows": FlattenRows,
    "fold-affine": FoldAffine,
    "fold-batch-norm": FoldBatchNorm,
    "fold-constant-if": FoldConstantIf,
    "fold-constants": FoldConstants,
    "fold-pads": FoldPads,
    "fuse-attention": FuseAttention,
    "fuse-gelu": FuseGelu,
    "fuse-gemm": FuseGemm,
    "fuse-group-norm": FuseGroupNorm,
    "fuse-hard-swish": FuseHardSwish,
    "fuse-layer-norm": FuseLayerNorm,
    "fuse-rms-norm": FuseRmsNorm,
    "fuse-rotary-embedding": FuseRotaryEmbedding,
    "hoist-bias": HoistBias,
    "hoist-pooling": HoistPooling,
    "infer-shapes": InferShapes,
    "inline-functions": InlineFunctions,
    "lift-constants": LiftConstants,
    "lower-opset": LowerOpset,
    "merge-qkv": MergeQkv,
    "merge-reshapes": MergeReshapes,
    "merge-slices": MergeSlices,
    "merge-transposes": MergeTransposes,
    "mix-precision": MixPrecision,
    "quantize-int4": QuantizeInt4,
    "quantize-int8": QuantizeInt8,
    "reduce-strength": ReduceStrength,
    "remove-unused": RemoveUnused,
    "replace-cast-like": ReplaceCastLike,
    "simplify-gathers": SimplifyGathers,
    "simplify-shapes": SimplifyShapes,
    "smooth-quant": SmoothQuant,
    "tile-memory": TileMemory,
    "unflatten-matmul": UnflattenMatmul,
    "unflatten-softmax": UnflattenSoftmax,
    "unpack-sequences": UnpackSequences,
    "unroll-loops": UnrollLoops,
    "use-contrib-operators": UseContribOperators,
}
"""Sorted by name."""
