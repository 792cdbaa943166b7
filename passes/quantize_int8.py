"""Compute products and convolutions in int8: half of the bytes of float16, and four times as many products at a time.

1. Static, with calibration data. The activation and the weight of a layer go onto grids; the bias stays float32:

       Gemm(x, w, b)  ->  Gemm(DequantizeLinear(QuantizeLinear(x, s, z), s, z), DequantizeLinear(w8, t), b)

   `s` and `z` are constants: the range of `x` on the calibration data (`passes.quantization.calibrators`). What
   several layers read is rounded once.
2. Dynamic, for Gemm and MatMul: each row of the activation, a token, gets a scale from its own largest element. A
   convolution stays float32, since an image has no rows that could have scales of their own.
3. Tables of embeddings, if `op_types_to_quantize` holds Gather: see `passes.quantization.tables`.
4. The operands of Attention, static: see `passes.quantization.attentions`.
5. With `kernels="onnxruntime"` the graph takes the forms that ONNX Runtime has integer kernels for: see
   `passes.quantization.onnxruntime_forms`.

Which layers are taken, and why others are not, is in `passes.quantization.layers` and `passes.quantization.sensitive`.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.errors import InputError, PipelineError
from optimizer.ir.edit import Editor, Scope
from optimizer.ir.near_miss import RewriteResult
from optimizer.ir.provenance import label
from optimizer.layer_speed import Speed
from optimizer.pass_manager import Pass
from passes.quantization.attentions import ATTENTION, find_attentions
from passes.quantization.calibrators import METHODS
from passes.quantization.dynamic import quantize_rows
from passes.quantization.grids import Kind
from passes.quantization.layers import LAYERS, Selection, find_layers
from passes.quantization.onnxruntime_forms import multiply_integers
from passes.quantization.static import StaticPlan, quantize_static
from passes.quantization.tables import quantize_tables
from passes.quantization.writer import drop_orphans, unused_constants

__all__ = ["QuantizeInt8"]

_TABLE = "Gather"
_ALLOWED = (*LAYERS, ATTENTION, _TABLE)
_TYPES = ("int8", "uint8")
_KERNELS = ("tersor", "onnxruntime")


@dataclasses.dataclass(frozen=True)
class QuantizeInt8(Pass):
    """Rounds activations and weights of products and convolutions to 8 bits.

    Options are named as in ONNX Runtime's quantizer where that has them.

    Attributes:
        dynamic: Whether rows of activations get scales of their own while the model runs; needs no calibration.
        per_channel: Whether each output channel of a weight has its own scale.
        reduce_range: Whether weights use 7 bits, for processors that saturate sums of two products at 16 bits.
        weight_type: `"int8"` or `"uint8"`; symmetric.
        activation_type: `"uint8"` or `"int8"`, of static activations.
        activation_symmetric: Whether zero is the middle code of a static activation.
        calibrate_method: `"minmax"`, `"percentile"`, `"entropy"` or `"mse"`.
        percentile: For `"percentile"`: how much of an activation lies inside its range, in percent.
        bias_correction: Whether the mean error of a rounded weight is taken out of the bias of a Conv or Gemm.
        op_types_to_quantize: Operators, separated by `+`. Gather, for tables of embeddings, is not among them unless
            asked for: it saves size, not time.
        nodes_to_exclude: Names of nodes that stay float32, separated by `+`.
        kernels: Whose: `"tersor"` or `"onnxruntime"`.
        optimize_for: `"time"`: layers that the target's tile model predicts to be no faster stay as they are; `"size"`:
            whatever becomes smaller is quantized.
        speed: The tile model, if the target has one; not an option in a pipeline string.
        samples: Calibration data; not an option in a pipeline string, `optimize(calibration=...)` gives it.
    """

    dynamic: bool = False
    per_channel: bool = True
    reduce_range: bool = False
    weight_type: str = "int8"
    activation_type: str = "uint8"
    activation_symmetric: bool = False
    calibrate_method: str = "minmax"
    percentile: float = 99.999
    bias_correction: bool = True
    op_types_to_quantize: str = "+".join((*LAYERS, ATTENTION))
    nodes_to_exclude: str = ""
    kernels: str = "tersor"
    optimize_for: str = "time"
    speed: Speed | None = dataclasses.field(default=None, repr=False, compare=False)
    samples: Samples | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._one_of("weight_type", _TYPES)
        self._one_of("activation_type", _TYPES)
        self._one_of("calibrate_method", METHODS)
        self._one_of("kernels", _KERNELS)
        self._one_of("optimize_for", ("time", "size"))
        if not 0 < self.percentile <= 100:
            raise PipelineError(f"quantize-int8{{percentile}} must be over 0 and at most 100, not {self.percentile}")
        unknown = [name for name in _names(self.op_types_to_quantize) if name not in _ALLOWED]
        if unknown:
            raise PipelineError(
                f"quantize-int8{{op_types_to_quantize}} can hold {', '.join(_ALLOWED)}, not {unknown[0]!r}"
            )

    def _one_of(self, option: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, option)
        if value not in allowed:
            raise PipelineError(
                f"quantize-int8{{{option}}} must be one of {', '.join(map(repr, allowed))}, not {value!r}"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize the layers of the main graph.

        Raises:
            InputError: Calibration data is needed and was not given, or an activation is NaN or infinite on it.
            UnsupportedError: A weight holds NaN or infinity.
        """
        editor = Editor(model)
        scope = Scope(model.graph, model.opset_imports.get("", 0))
        unused = unused_constants(scope)
        excluded = frozenset(_names(self.nodes_to_exclude))
        operators, for_size = _names(self.op_types_to_quantize), self.optimize_for == "size"
        selection = Selection(operators, excluded, self.speed, self.dynamic, for_size)
        layers = find_layers(editor, scope, selection)
        attentions = find_attentions(editor, scope, selection, self.kernels == "onnxruntime")
        weights = Kind(self.weight_type == "int8", True, self.reduce_range)
        if self.dynamic:
            for layer in layers:
                if layer.node.op_type == "Conv":
                    editor.miss(layer.node, "a convolution has no rows to scale while it runs: give calibration data")
            products = [layer for layer in layers if layer.node.op_type != "Conv"]
            if self.kernels == "onnxruntime":
                multiply_integers(editor, scope, products, weights, self.per_channel)
            else:
                quantize_rows(editor, scope, products, lambda layer: layer.grids(weights, self.per_channel))
        elif layers or attentions:
            if self.samples is None:
                first = label(layers[0].node if layers else attentions[0])
                raise InputError(
                    f"quantize-int8 needs calibration data to know the range of what {first!r} reads: give "
                    "optimize(calibration=[{...}, ...]), or ask for quantize-int8{dynamic=true}, which needs none"
                )
            activations = Kind(self.activation_type == "int8", self.activation_symmetric)
            plan = StaticPlan(
                weights,
                activations,
                self.per_channel,
                self.calibrate_method,
                self.percentile,
                self.bias_correction,
                self.kernels == "onnxruntime",
                for_size,
            )
            quantize_static(editor, scope, layers, attentions, plan, self.samples)
        if _TABLE in selection.op_types:
            quantize_tables(editor, scope, selection, weights, self.per_channel)
        drop_orphans(scope, unused)
        return RewriteResult(model, editor.modified, tuple(editor.near_misses))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split("+") if name)
