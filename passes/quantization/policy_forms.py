"""A model with all of its layers in one of the forms that a `PrecisionPolicy` knows."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.ir.near_miss import NearMiss, RewriteResult
from optimizer.pass_manager import Pass, call_pass
from optimizer.precision_policy import PrecisionPolicy, block_size
from passes.quantize_int4 import QuantizeInt4
from passes.quantize_int8 import QuantizeInt8
from passes.smooth_quant import SmoothQuant

__all__ = ["SMOOTHING", "in_form", "int4_form"]

SMOOTHING = 0.75
"""Outliers are mostly the activations'. MiniLM loses least from 0.75 on; Xiao et al. take 0.5 to 0.85."""

Progress = Callable[[int, int, str], None]


def in_form(
    model: ir.Model, form: str, policy: PrecisionPolicy, kernels: str, samples: Samples, progress: Progress | None
) -> tuple[ir.Model, list[NearMiss]]:
    """A copy of a model with each layer in a form that can take it, and why others cannot.

    Args:
        model: In float; not changed.
        form: Not `"float32"`.
        policy: How 4-bit weights are made.
        kernels: Who will compute: `"tersor"` or `"onnxruntime"`.
        samples: Calibration data.
        progress: Called after each layer.
    """
    result = model.clone()
    misses: list[NearMiss] = []
    for pass_ in _passes(form, policy, kernels, samples, progress):
        done, _ = call_pass(pass_, result)
        # What is not smoothed is quantized all the same.
        if isinstance(done, RewriteResult) and not isinstance(pass_, SmoothQuant):
            misses += done.near_misses
    return result, misses


def _passes(
    form: str, policy: PrecisionPolicy, kernels: str, samples: Samples, progress: Progress | None
) -> list[Pass]:
    if block_size(form) is not None:
        return [int4_form(form, policy, kernels, samples, progress)]
    if form == "int8-dynamic":
        return [QuantizeInt8(dynamic=True, kernels=kernels, optimize_for="size", op_types_to_quantize="Gemm+MatMul")]
    operators = "Conv+Gemm+MatMul+Gather"
    rounding = QuantizeInt8(kernels=kernels, optimize_for="size", op_types_to_quantize=operators, samples=samples)
    return [SmoothQuant(alpha=SMOOTHING, samples=samples), rounding]


def int4_form(
    form: str, policy: PrecisionPolicy, kernels: str, samples: Samples, progress: Progress | None
) -> QuantizeInt4:
    """The pass that makes weights of 4 bits.

    Args:
        form: One of 4 bits.
        policy: How weights are made.
        kernels: Who will compute: `"tersor"` or `"onnxruntime"`.
        samples: Calibration data.
        progress: Called after each layer.
    """
    # As for `precision="int4"`: our own convolutions would unpack the weights in each run.
    operators = "MatMul+Gemm+Conv+Gather" if kernels == "onnxruntime" else "MatMul+Gemm+Gather"
    shown = None if progress is None else (lambda done, total, name: progress(done, total, f"{name} as {form}"))
    return QuantizeInt4(
        method=policy.method,
        block_size=block_size(form) or 0,
        symmetric=policy.symmetric,
        scale_type=policy.scale_type,
        op_types_to_quantize=operators,
        samples=samples,
        progress=shown,
    )
