"""Weights of 4 bits: an eighth of the bytes of float32, for matrices, convolutions and embeddings.

Before and after, for each layer that `passes/quantization/weight_layers.py` lists:

1. `MatMul(x, W)` -> `MatMul(x, DequantizeLinear(codes, scales, zeros))`, with a scale for each block of rows, or for
   each output. Symmetric codes are INT4 and have no zero points, asymmetric ones UINT4. Scales that are stored in 16
   bits are cast to float32 first.
2. With `method=nf4` -> `MatMul(x, Reshape(Mul(Reshape(Gather(codebook, Cast(codes))), scales)))`, in which
   the scales are dequantized from 8 bits.
3. With `activations=int8` what such a `MatMul` or `Gemm` reads is rounded in front of it, block by block along the
   reduced axis (`passes/quantization/activation_blocks.py`); with `activations=int8-rows` row by row, as
   `passes/quantization/dynamic.py` does for weights of 8 bits.

Else only weights are quantized, and what is computed with them stays as it is. Which codes and scales are best is
decided layer by layer in the order of the graph. With calibration data each layer is judged by the error of its
product, on inputs that come from the model as it stands then; see `passes/quantization/int4_run.py`. Without
calibration data a layer is judged by the error of its weights.

A layer stays as it is when it would not become smaller, and where the reason is one of those in `weight_layers.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.errors import InputError, PipelineError
from optimizer.ir.near_miss import RewriteResult
from optimizer.pass_manager import Pass
from passes.quantization.blocks import SCALE_TYPES
from passes.quantization.int4_run import Int4Run
from passes.quantization.weight_layers import OPERATORS

__all__ = ["QuantizeInt4"]

_METHODS = ("auto", "rtn", "hqq", "gptq", "awq", "nf4")
_BLOCK_SIZES = (0, 16, 32, 64, 128, 256)


@dataclasses.dataclass(frozen=True)
class QuantizeInt4(Pass):
    """Quantizes weights to 4 bits.

    Attributes:
        method: How codes are found. `"rtn"`: round to nearest. `"hqq"`: half-quadratic, no data. `"gptq"` and
            `"awq"`: need calibration data. `"nf4"`: a codebook for normally distributed weights. `"auto"`: for each
            layer the best of RTN, a search for scales and, with calibration data, GPTQ. None but `"nf4"` leaves a layer
            with a larger error than RTN.
        block_size: How many weights share a scale: 0 for all of an output, or 16, 32, 64, 128 or 256.
        symmetric: INT4 without zero points, else UINT4 with them.
        scale_type: What scales are stored as: `"float32"`, `"float16"` or `"bfloat16"`.
        activations: What products of matrices read: `"float32"`; or rounded while the model runs, which is twice as
            fast or more where there are many rows, and costs some accuracy. `"int8"`: with a scale for each block of a
            row, of as many elements as weights share a scale, and 32 at least (128 where all weights of an output share
            one; the largest common divisor where the row is no multiple, and all of the row where that is below 32).
            `"int8-rows"`: with one scale for each row.
        op_types_to_quantize: Operators, separated by `+`.
        nodes_to_exclude: Names of nodes (or of what they compute) that stay as they are, separated by `+`.
        max_error: A layer that would lose more than this stays as it is: the norm of the error of its product on the
            calibration data over the norm of the product, or the same of its weights where there are none. 0 is no
            bound. Not for `"awq"`.
        max_statistics_bytes: How much memory the statistics of the layers' inputs may take at a time; at least those of
            one layer are held. What is kept of the samples from one part of the model to the next takes a quarter of
            this at most, and a temporary folder beyond it.
        samples: The calibration data.
        values: What the layers compute that are quantized, by name; all of them when not given.
        resume: A folder in which finished layers are kept, so that a run that was killed can go on.
        progress: Called after each layer with how many are done, how many there are, and the layer's name.
    """

    method: str = "auto"
    block_size: int = 64
    symmetric: bool = False
    scale_type: str = "float32"
    activations: str = "float32"
    op_types_to_quantize: str = "+".join(OPERATORS)
    nodes_to_exclude: str = ""
    max_error: float = 0.0
    max_statistics_bytes: int = 1 << 30
    samples: Samples | None = dataclasses.field(default=None, repr=False, compare=False)
    values: frozenset[str] | None = dataclasses.field(default=None, repr=False, compare=False)
    resume: str | None = dataclasses.field(default=None, repr=False, compare=False)
    progress: Callable[[int, int, str], None] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._expect("method", self.method, _METHODS)
        self._expect("block_size", self.block_size, _BLOCK_SIZES)
        self._expect("activations", self.activations, ("float32", "int8", "int8-rows"))
        self._expect("scale_type", self.scale_type, tuple(SCALE_TYPES))
        if not self.max_error >= 0:
            raise PipelineError(f"quantize-int4{{max_error}} must not be negative, and is {self.max_error!r}")
        if self.max_error and self.method == "awq":
            raise PipelineError("quantize-int4{max_error} is not for method=awq, which scales all that read a value")
        for op_type in self.op_types_to_quantize.split("+"):
            self._expect("op_types_to_quantize", op_type, OPERATORS)

    def _expect(self, field: str, value: object, allowed: tuple[object, ...]) -> None:
        if value not in allowed:
            known = ", ".join(map(str, allowed))
            raise PipelineError(f"quantize-int4{{{field}}} must be one of {known}, not {value!r}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize the main graph, and the graphs inside it.

        Raises:
            InputError: The method needs calibration data and there are none, the layers' inputs are not finite, or the
                folder of `resume` cannot be made.
            ModelError: A weight is not finite.
        """
        if self.method in ("gptq", "awq") and self.samples is None:
            raise InputError(
                f"quantize-int4{{method={self.method}}} needs calibration data: give "
                "calibration=[{'input': array}, ...], or choose method=hqq, which needs none"
            )
        run = Int4Run(self, model)
        run.quantize()
        return RewriteResult(model, run.editor.modified, tuple(run.editor.near_misses))
