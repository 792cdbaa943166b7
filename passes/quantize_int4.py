"""Weights of 4 bits: an eighth of the bytes of float32, for matrices, convolutions and embeddings.

Before and after, for each layer that `passes/quantization/weight_layers.py` lists:

1. `MatMul(x, W)` -> `MatMul(x, DequantizeLinear(codes, scales, zeros))`, with a scale for each block of rows, or for
   each output. Symmetric codes are INT4 and have no zero points, asymmetric ones UINT4. Scales that are stored in 16
   bits are cast to float32 first.
2. With `method=nf4` -> `MatMul(x, Reshape(Mul(Reshape(Gather(codebook, Cast(codes))), scales)))`, in which
   the scales are dequantized from 8 bits.

Only weights are quantized; what is computed with them stays float32. Which codes and scales are best is decided layer
by layer in the order of the graph. With calibration data each layer is judged by the error of its product, on inputs
that come from the model as it stands then: layers are taken in groups, as many as their statistics (XᵀX, `[K, K]`) fit
into `max_statistics_bytes`, and the inputs of a group come from a model in which all groups before it are quantized.
Without calibration data a layer is judged by the error of its weights.

A layer stays as it is when it would not become smaller, and where the reason is one of those in `weight_layers.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from optimizer.calibration import Samples
from optimizer.errors import InputError, ModelError, PipelineError
from optimizer.ir.edit import Editor, Scope
from optimizer.ir.float_types import nested_scopes
from optimizer.ir.near_miss import RewriteResult
from optimizer.pass_manager import Pass
from passes.quantization.awq import fold_scales, input_scales, scaled_inputs
from passes.quantization.blocks import SCALE_TYPES, Blocks, Floats, Grid
from passes.quantization.emit import emit_codes, emit_normal_floats, replace_weight
from passes.quantization.inputs import Inputs, Source, measure, source_of
from passes.quantization.methods import Choice, best, relative_error
from passes.quantization.nf4 import normal_float
from passes.quantization.state import Finished
from passes.quantization.weight_layers import OPERATORS, Layer, find_layers

__all__ = ["QuantizeInt4"]

_METHODS = ("auto", "rtn", "hqq", "gptq", "awq", "nf4")
_BLOCK_SIZES = (0, 16, 32, 64, 128, 256)
_OPSET = 21
"""The first with 4-bit integers and blocks."""


@dataclasses.dataclass(frozen=True)
class QuantizeInt4(Pass):
    """Quantizes weights to 4 bits.

    Attributes:
        method: How codes are found. `"rtn"`: round to nearest. `"hqq"`: half-quadratic, no data. `"gptq"` and
            `"awq"`: need calibration data. `"nf4"`: a codebook for normally distributed weights. `"auto"`: for each
            layer the best of RTN, a search for scales, and HQQ or, with calibration data, GPTQ. None but `"nf4"` leaves
            a layer with a larger error than RTN.
        block_size: How many weights share a scale: 0 for all of an output, or 16, 32, 64, 128 or 256.
        symmetric: INT4 without zero points, else UINT4 with them.
        scale_type: What scales are stored as: `"float32"`, `"float16"` or `"bfloat16"`.
        op_types_to_quantize: Operators, separated by `+`.
        nodes_to_exclude: Names of nodes (or of what they compute) that stay as they are, separated by `+`.
        max_error: A layer that would lose more than this stays as it is: the norm of the error of its product on the
            calibration data over the norm of the product, or the same of its weights where there are none. 0 is no
            bound. Not for `"awq"`.
        max_statistics_bytes: How much memory the statistics of the layers' inputs may take at a time; at least those of
            one layer are held.
        samples: The calibration data.
        resume: A folder in which finished layers are kept, so that a run that was killed can go on.
        progress: Called after each layer with how many are done, how many there are, and the layer's name.
    """

    method: str = "auto"
    block_size: int = 64
    symmetric: bool = False
    scale_type: str = "float32"
    op_types_to_quantize: str = "+".join(OPERATORS)
    nodes_to_exclude: str = ""
    max_error: float = 0.0
    max_statistics_bytes: int = 1 << 30
    samples: Samples | None = dataclasses.field(default=None, repr=False, compare=False)
    resume: str | None = dataclasses.field(default=None, repr=False, compare=False)
    progress: Callable[[int, int, str], None] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._expect("method", self.method, _METHODS)
        self._expect("block_size", self.block_size, _BLOCK_SIZES)
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
        run = _Run(self, model)
        run.quantize()
        return RewriteResult(model, run.editor.modified, tuple(run.editor.near_misses))


@dataclasses.dataclass(frozen=True)
class _Group:
    """Layers that are quantized after one look at the data.

    Attributes:
        layers: With their numbers among all.
        sources: Where the inputs of some of them are from, each once.
    """

    layers: list[tuple[int, Layer]]
    sources: dict[tuple[Source, ...], None]


@dataclasses.dataclass(frozen=True)
class _Task:
    """A layer to quantize.

    Attributes:
        number: Among all.
        layer: With its weight as it is to be rounded.
        inputs: What is known of them.
        scales: What the rows of the weight were multiplied with.
    """

    number: int
    layer: Layer
    inputs: Inputs | None
    scales: Floats | None = None


class _Run:
    """One call of the pass.

    Args:
        options: The pass.
        model: Is changed.
    """

    def __init__(self, options: QuantizeInt4, model: ir.Model) -> None:
        self.editor = Editor(model)
        self._options = options
        self._model = model
        self._grid = Grid(options.symmetric, options.scale_type)

    def quantize(self) -> None:
        layers = self._layers()
        if not layers:
            return
        finished = Finished(self._options.resume, self._model, str(self._options), self._options.samples)
        for group in self._groups(layers):
            self._quantize_group(group, finished, len(layers))

    def _layers(self) -> list[Layer]:
        opset = self._model.opset_imports.get("", 0)
        scope = Scope(self._model.graph, opset)
        op_types = self._options.op_types_to_quantize.split("+")
        excluded = [name for name in self._options.nodes_to_exclude.split("+") if name]
        found = [layer for each in nested_scopes(scope) for layer in find_layers(self.editor, each, op_types, excluded)]
        result = []
        for layer in found:
            reason = self._obstacle(layer, opset)
            if reason is None:
                result.append(layer)
            else:
                self.editor.miss(layer.nodes[0], reason)
        return result

    def _obstacle(self, layer: Layer, opset: int) -> str | None:
        if opset < _OPSET:
            return f"opset {opset} has no integers of 4 bits; opset {_OPSET} has"
        blocks = layer.blocks(self._options.block_size)
        if self._options.method == "nf4":
            if len(layer.shape) > 2:
                return "NF4 is for matrices only"
            if layer.rows % blocks.size:
                return f"NF4 needs blocks of equal length, and {layer.rows} is no multiple of {blocks.size}"
        scale_bytes = np.dtype(SCALE_TYPES[self._options.scale_type]).itemsize + (0 if self._grid.symmetric else 0.5)
        if layer.rows / 2 + len(blocks.starts) * scale_bytes >= 4 * layer.rows:
            return f"its weight {layer.weight.name!r} would not become smaller"
        return None

    def _groups(self, layers: list[Layer]) -> list[_Group]:
        """Layers in their order, in groups whose statistics fit into memory."""
        groups = [_Group([], {})]
        held = 0
        for number, layer in enumerate(layers):
            sources = source_of(layer) if self._reads_inputs() else None
            if sources is not None and sources not in groups[-1].sources:
                needed = 8 * layer.rows**2  # XᵀX, and its factor
                if groups[-1].sources and held + needed > self._options.max_statistics_bytes:
                    groups.append(_Group([], {}))
                    held = 0
                held += needed
                groups[-1].sources[sources] = None
            groups[-1].layers.append((number, layer))
        return groups

    def _reads_inputs(self) -> bool:
        return self._options.samples is not None and self._options.method in ("auto", "gptq", "awq")

    def _quantize_group(self, group: _Group, finished: Finished, total: int) -> None:
        known = {number: finished.load(number, self._blocks(layer)) for number, layer in group.layers}
        inputs = self._inputs([layer for number, layer in group.layers if known[number] is None], group)
        if self._options.method == "awq":
            tasks = self._scaled(group, known, inputs)
        else:
            tasks = [_Task(number, layer, inputs.get(source_of(layer) or ())) for number, layer in group.layers]
        for task in tasks:
            self._quantize_layer(task, known.pop(task.number), finished)
            if self._options.progress is not None:
                self._options.progress(task.number + 1, total, task.layer.name)

    def _quantize_layer(self, task: _Task, choice: Choice | None, finished: Finished) -> None:
        layer = task.layer
        weights = _finite(layer)
        largest = float(np.abs(weights).max())
        if largest > self._grid.largest_weight:
            reason = f"weights up to {largest:.3g} in {layer.weight.name!r} are too large for scales of "
            self.editor.miss(layer.nodes[0], reason + self._grid.scale_type)
        elif self._options.method == "nf4":
            found = normal_float(weights, self._blocks(layer))
            error = relative_error(weights, found.dequantized(), None)
            if self._accepts(layer, error):
                self._replace(layer, emit_normal_floats(self.editor, layer, found), "nf4", error)
        else:
            if choice is None:
                choice = best(weights, self._blocks(layer), self._grid, self._options.method, task.inputs)
                if task.scales is not None:
                    choice = dataclasses.replace(choice, method="awq", input_scales=task.scales)
                finished.save(task.number, choice)
            if self._accepts(layer, choice.error):
                new = emit_codes(self.editor, layer, choice.quantized, self._grid)
                self._replace(layer, new, choice.method, choice.error)

    def _accepts(self, layer: Layer, error: float) -> bool:
        bound = self._options.max_error
        if bound and error > bound:
            self.editor.miss(layer.nodes[0], f"its error with 4 bits would be {error:.3g}, more than max_error={bound}")
            return False
        return True

    def _scaled(
        self, group: _Group, known: Mapping[int, Choice | None], inputs: Mapping[tuple[Source, ...], Inputs]
    ) -> list[_Task]:
        """The layers after those that read the same value have got their rows scaled."""
        together: dict[tuple[Source, ...], list[tuple[int, Layer]]] = {}
        tasks = []
        for number, layer in group.layers:
            sources = source_of(layer)
            if sources is not None and len(sources) == 1 and not sources[0].kernel and not sources[0].turned:
                together.setdefault(sources, []).append((number, layer))
            else:
                tasks.append(_Task(number, layer, inputs.get(sources or ())))
        for sources, members in together.items():
            of_value = inputs.get(sources)
            layers = [layer for _, layer in members]
            kept = [choice.input_scales for number, _ in members if (choice := known[number]) is not None]
            scales = kept[0] if kept else None
            if not kept and of_value is not None and all(map(_is_finite, layers)):
                scales = input_scales(layers, self._options.block_size, self._grid, of_value)
            if scales is not None:
                layers = fold_scales(self.editor, layers, scales)
                of_value = None if of_value is None else scaled_inputs(of_value, scales)
            tasks += [
                _Task(number, layer, of_value, scales) for (number, _), layer in zip(members, layers, strict=True)
            ]
        return sorted(tasks, key=lambda task: task.number)

    def _inputs(self, layers: Sequence[Layer], group: _Group) -> dict[tuple[Source, ...], Inputs]:
        """What is known of the inputs of layers, as the model is now."""
        wanted = [sources for sources in map(source_of, layers) if sources is not None and sources in group.sources]
        wanted = list(dict.fromkeys(wanted))
        if not wanted or self._options.samples is None:
            return {}
        return dict(zip(wanted, measure(self._model, wanted, self._options.samples), strict=True))

    def _replace(self, layer: Layer, new: ir.Value, method: str, error: float) -> None:
        replace_weight(self.editor, layer, new, {"method": method, "error": float(f"{error:.3g}")})

    def _blocks(self, layer: Layer) -> Blocks:
        return layer.blocks(self._options.block_size)


def _is_finite(layer: Layer) -> bool:
    return bool(np.isfinite(layer.matrix()).all())


def _finite(layer: Layer) -> Floats:
    """The weight of a layer as a matrix.

    Raises:
        ModelError: It is not finite.
    """
    weights = layer.matrix()
    if not np.isfinite(weights).all():
        raise ModelError(
            f"weight {layer.weight.name!r} of {layer.name!r} holds NaN or infinity: mend it, or leave the layer out "
            f"with nodes_to_exclude={layer.name}"
        )
    return weights
