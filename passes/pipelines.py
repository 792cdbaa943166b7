"""Which passes run for a target, and in which order. Each constraint stands at its line, with its reason.

Two passes of which neither needs the other stand in alphabetical order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optimizer.ir.float_types import HEAVY
from optimizer.onnx_limits import OnnxLimits
from optimizer.pass_manager import Fixpoint, Pass
from optimizer.precision_policy import PrecisionPolicy
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
from passes.quantization.policy_forms import SMOOTHING
from passes.quantize_int4 import QuantizeInt4
from passes.quantize_int8 import QuantizeInt8
from passes.reduce_strength import ReduceStrength
from passes.remove_unused import RemoveUnused
from passes.replace_cast_like import ReplaceCastLike
from passes.simplify_gathers import SimplifyGathers
from passes.simplify_shapes import SimplifyShapes
from passes.smooth_quant import SmoothQuant
from passes.unflatten_matmul import UnflattenMatmul
from passes.unflatten_softmax import UnflattenSoftmax
from passes.unpack_sequences import UnpackSequences
from passes.unroll_loops import UnrollLoops
from passes.use_contrib_operators import UseContribOperators

__all__ = ["cleanup", "default_pipeline", "in_precision", "within"]


def default_pipeline(target_kind: str) -> list[Pass]:
    """The passes for a target, in order.

    Args:
        target_kind: `Target.kind`, such as `"cpu"` or `"onnx"`. Nearly all passes help every backend.
    """
    return [
        # First: every other pass only knows the standard operators.
        InlineFunctions(),
        # Before all that looks for constants: there is one kind of them then. After inlining: functions cannot hold
        # initializers.
        LiftConstants(),
        # Before any work is spent on what is not needed.
        RemoveUnused(),
        cleanup(),
        # Before fuse-attention: a rotation can be passed by where the heads are cut out, when it is one node.
        FuseRotaryEmbedding(),
        # After the clean-up: it knows masks, scales and views in one form each, and constants as such. ONNX Runtime's
        # own Attention of float16 fails that operator's node test, where the products and the softmax pass it.
        FuseAttention(half_precision=target_kind != "onnx"),
        # After fuse-attention: it begins at an Attention.
        MergeQkv(),
        # After fuse-rotary-embedding, which looks for the halves of a head as an exporter cuts them.
        MergeSlices(),
        # Once more: masks and shapes that every layer has made for itself become one. With cancel-transposes, which
        # has to wait for fuse-attention, since that looks for the heads where an exporter turns them, and for
        # merge-qkv, which leaves one transpose in front of a Split for three behind it.
        Fixpoint((CancelTransposes(), *cleanup().passes)),
        *(_as_matrices() if target_kind == "onnx" else ()),
        # Last: it describes what is left.
        InferShapes(),
    ]


def within(pipeline: Sequence[Pass], limits: OnnxLimits) -> list[Pass]:
    """A pipeline that leaves a model in an older opset, or with ONNX Runtime's own operators.

    Args:
        pipeline: If it lowers the opset itself, or puts such operators in, nothing is added.
        limits: What the target allows.
    """
    if any(isinstance(pass_, (LowerOpset, UseContribOperators)) for pass_ in pipeline):
        return [*pipeline]
    lower = [] if limits.opset is None else [LowerOpset(limits.opset)]
    if limits.contrib:
        return [
            *pipeline,
            # After the fusions, which know no operators but the standard ones.
            UseContribOperators(),
            # After use-contrib-operators: what it takes need not be said in an older opset.
            *lower,
            # After all of that: masks and bodies that several layers made for themselves become one.
            *([cleanup()] if limits.opset is not None else [EliminateCommonSubexpressions(), RemoveUnused()]),
        ]
    if not lower:
        return [*pipeline]
    return [
        # First: lower-opset knows no functions of the model, and needs sizes and axes as constants.
        InlineFunctions(),
        LiftConstants(),
        Fixpoint((ReplaceCastLike(), SimplifyShapes(), FoldConstants(), RemoveUnused())),
        # Before all others: a fusion then only makes operators that the older opset has.
        *lower,
        *pipeline,
    ]


def in_precision(
    pipeline: Sequence[Pass], precision: str | PrecisionPolicy, target_kind: str = "cpu", calibrated: bool = False
) -> list[Pass]:
    """A pipeline that leaves a model in a precision.

    Args:
        pipeline: If it converts to it already, nothing is added.
        precision: `"float32"`, which changes nothing, one of `_CONVERSIONS`, or a policy.
        target_kind: `Target.kind`: whose kernels will compute.
        calibrated: Whether there is calibration data.
    """
    if precision == "float32":
        return [*pipeline]
    # Last: the fusions know numbers and formulas by their float32 values, and folding is exact before it.
    if isinstance(precision, PrecisionPolicy):
        added: list[Pass] = [MixPrecision(_kernels(target_kind), policy=precision)]
    else:
        added = _CONVERSIONS[precision](target_kind, calibrated)
    given = {type(pass_) for pass_ in pipeline}
    quantizing = [pass_ for pass_ in added if not isinstance(pass_, ConvertFloat)] or added
    return [*pipeline] if any(type(pass_) in given for pass_ in quantizing) else [*pipeline, *added]


def _in_int4(target_kind: str, calibrated: bool) -> list[Pass]:
    # Our own convolutions would unpack the weights in each run; ONNX Runtime does it once, when it loads the model.
    return [QuantizeInt4() if target_kind == "onnx" else QuantizeInt4(op_types_to_quantize="MatMul+Gemm+Gather")]


_ALL_BUT_ATTENTION = "+".join(sorted({*HEAVY, "QuantizeLinear", "DequantizeLinear"} - {"Attention"}))


def _in_int8(target_kind: str, calibrated: bool) -> list[Pass]:
    # Before quantize-int8: it moves outliers to where each channel has its own scale.
    smooth = [SmoothQuant(alpha=SMOOTHING)] if calibrated else []
    quantize = QuantizeInt8(dynamic=not calibrated, kernels=_kernels(target_kind))
    # Attention, which has no weights, stays float32, which tensor cores do not multiply: there it is bfloat16, which is
    # finer than the bytes around it, and has the range of float32.
    attention = [ConvertFloat(keep=_ALL_BUT_ATTENTION)] if target_kind == "cuda" else []
    return [*smooth, quantize, *attention]


def _kernels(target_kind: str) -> str:
    return "onnxruntime" if target_kind == "onnx" else "tersor"


_CONVERSIONS: Mapping[str, Callable[[str, bool], list[Pass]]] = {
    "bfloat16": lambda target_kind, calibrated: [ConvertFloat(to="bfloat16")],
    "float16": lambda target_kind, calibrated: [ConvertFloat(to="float16")],
    "int4": _in_int4,
    "int8": _in_int8,
}
"""By precision: the passes, given the kind of the target and whether there is calibration data."""


def _as_matrices() -> tuple[Pass, ...]:
    """Fewer kernels for a runtime that has one for each node; our own backends fuse what stands around a product."""
    return (
        # After the clean-up, which would undo it where it stands alone.
        FlattenRows(),
        # After flatten-rows: two reshapes in a row become one, and products of matrices take their summands: hoist-bias
        # frees the place of one for the skip connection.
        Fixpoint((MergeReshapes(), HoistBias(), FuseGemm(), EliminateCommonSubexpressions(), RemoveUnused())),
    )


def cleanup() -> Fixpoint:
    """What every model goes through until nothing changes any more."""
    return Fixpoint(
        (
            # Before fold-constants: a constant that is cast like something computed is constant then.
            ReplaceCastLike(),
            # Before fold-constants: sizes that it makes constant are then folded with all that hangs on them.
            SimplifyShapes(),
            # Before fold-constant-if and the folds into layers: it makes the conditions and operands constant.
            FoldConstants(),
            # Before everything that matches patterns: what it brings in is to be matched too.
            FoldConstantIf(),
            # After fold-constants: the number of trips is then constant.
            UnrollLoops(),
            # After fold-constants: the sizes and positions are then constant.
            UnpackSequences(),
            # After fold-constant-if: a constant that was an output of the branch no longer is one.
            LiftConstants(),
            # Before everything that matches patterns: a no-op in the middle hides them.
            EliminateIdentities(),
            # Before merge-transposes and the fusions: it leaves transposes and products, as others write them.
            DecomposeEinsum(),
            # Before eliminate-broadcasts: it leaves an Expand where many equal elements were gathered.
            SimplifyGathers(),
            EliminateBroadcasts(),
            ReduceStrength(),
            MergeReshapes(),
            MergeTransposes(),
            # Before the fusions: it leaves one way to write a layer. After merge-reshapes: a shape is said in one step.
            UnflattenMatmul(),
            UnflattenSoftmax(),
            # Before the folds into layers: a fold could take a number out of a formula that is to be recognized.
            FuseGelu(),
            FuseHardSwish(),
            # Before fuse-rms-norm, which would take the second half of a layer normalization for its own.
            FuseLayerNorm(),
            FuseRmsNorm(),
            # After fuse-layer-norm, from which it takes what standardizes a group.
            FuseGroupNorm(),
            # Before fold-affine: what is left of a normalization in front of a Mul can then take the Mul as well.
            FoldBatchNorm(),
            FoldAffine(),
            # After fold-constants: how much is padded is then known.
            FoldPads(),
            # After the folds into layers: what stood between the convolution and the pooling is then part of the layer.
            HoistPooling(),
            # After the fusions: a normalization with a bias is where the sign of a zero ends.
            EliminateZeroSums(),
            # After the folds into layers, which take a product and its summand as well as a Gemm.
            FuseGemm(),
            # After the folds: a weight that two layers share is not changed by them.
            DeduplicateInitializers(),
            # After deduplicate-initializers: equal inputs make equal nodes.
            EliminateCommonSubexpressions(),
            # Last in each round: the next one then finds that a value has one user fewer.
            RemoveUnused(),
        )
    )
