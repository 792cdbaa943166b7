"""The layers of a model quantized to 4 bits, one group of layers after the other.

With calibration data, layers are taken in groups, as many as their statistics (XᵀX, `[K, K]`) fit into memory, and the
inputs of a group come from a model in which all groups before it are quantized. The model is run part by part
(`optimizer.calibration_walk`): what stands in front of a group is run once when it is quantized, and never again; so a
model takes twice the time of one run, and the memory of the weights of one part. AWQ changes what stands in front of
its layers, too: for it all of the model is run for each group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optimizer.calibration_walk import Walk, cut_between
from optimizer.errors import ModelError
from optimizer.ir.edit import Editor, Scope
from optimizer.ir.float_types import nested_scopes
from optimizer.ir.query import int_attribute, is_op
from passes.quantization.activation_blocks import ActivationBlocks
from passes.quantization.awq import fold_scales, input_scales, scaled_inputs
from passes.quantization.blocks import SCALE_TYPES, Blocks, Floats, Grid
from passes.quantization.emit import emit_codes, emit_normal_floats, replace_weight
from passes.quantization.inputs import Inputs, Source, measure, source_of
from passes.quantization.methods import Choice, best, relative_error
from passes.quantization.nf4 import normal_float
from passes.quantization.state import Finished
from passes.quantization.weight_layers import Layer, find_layers
from passes.quantization.writer import Writer

if TYPE_CHECKING:
    from passes.quantize_int4 import QuantizeInt4

__all__ = ["Int4Run"]

_OPSET = 21
"""The first with 4-bit integers and blocks."""


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


class Int4Run:
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
        self._products: dict[ir.Node, tuple[int, int]] = {}
        """With a 4-bit weight, and how many rows and columns that has."""

    def quantize(self) -> None:
        """Do it.

        Raises:
            InputError: The layers' inputs are not finite, or the folder of `resume` cannot be made.
            ModelError: A weight is not finite.
        """
        layers = self._layers()
        if not layers:
            return
        finished = Finished(self._options.resume, self._model, str(self._options), self._options.samples)
        groups = self._groups(layers)
        samples = self._options.samples
        if samples is None or not self._reads_inputs():
            self._quantize_groups(groups, finished, None)
        else:
            with Walk(self._model, samples, self._options.max_statistics_bytes // 4) as walk:
                self._quantize_groups(groups, finished, walk)
        if self._options.activations != "float32":
            self._round_activations()

    def _round_activations(self) -> None:
        """Round what products with 4-bit weights read."""
        for scope in nested_scopes(Scope(self._model.graph, self._model.opset_imports.get("", 0))):
            blocks = ActivationBlocks.of(self.editor, Writer(self.editor, scope), self._options.block_size)
            # In the order of the graph: what several of them read is rounded in front of the first.
            for node in [node for node in scope.graph if node in self._products]:
                x, weight = node.inputs[:2]
                assert x is not None and weight is not None, "a product has two factors"
                if int_attribute(node, "transA", 0):
                    reason: str | None = "its rows are turned"
                elif self.editor.shapes.dtype(x) != ir.DataType.FLOAT:
                    reason = f"what it reads is not float32: {x.name!r}"
                else:
                    reason = blocks.rows.obstacle(x, scope.opset)
                if reason is not None:
                    self.editor.miss(node, f"its activations stay as they are: {reason}")
                elif self._options.activations == "int8-rows":
                    blocks.rows.multiply(node, weight, self._products[node][1])
                else:
                    blocks.multiply(node, weight, *self._products[node])

    def _quantize_groups(self, groups: Sequence[_Group], finished: Finished, walk: Walk | None) -> None:
        total = sum(len(group.layers) for group in groups)
        cuts: list[ir.Node | None] = [None] * len(groups)
        if walk is not None and self._options.method != "awq":
            cuts[1:] = cut_between(self._model, self.editor.shapes, [_measured(group) for group in groups])
        for group, cut in zip(groups, cuts, strict=True):
            if walk is not None and cut is not None:
                walk.cut(cut)
            self._quantize_group(group, finished, walk, total)

    def _layers(self) -> list[Layer]:
        opset = self._model.opset_imports.get("", 0)
        scope = Scope(self._model.graph, opset)
        op_types = self._options.op_types_to_quantize.split("+")
        excluded = [name for name in self._options.nodes_to_exclude.split("+") if name]
        found = [layer for each in nested_scopes(scope) for layer in find_layers(self.editor, each, op_types, excluded)]
        result = []
        for layer in found:
            if self._options.values is not None and not all(
                n.outputs[0].name in self._options.values for n in layer.nodes
            ):
                continue
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
        if layer.rows / 2 + len(blocks.starts) * scale_bytes >= layer.stored.dtype.itemsize * layer.rows:
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

    def _quantize_group(self, group: _Group, finished: Finished, walk: Walk | None, total: int) -> None:
        known = {number: finished.load(number, self._blocks(layer)) for number, layer in group.layers}
        inputs = self._inputs([layer for number, layer in group.layers if known[number] is None], group, walk)
        if self._options.method == "awq":
            tasks = self._scaled(group, known, inputs)
        else:
            tasks = [_Task(number, layer, inputs.get(source_of(layer) or ())) for number, layer in group.layers]
        inputs.clear()  # what is known of them lives as long as there is a layer left that reads them
        for index, task in enumerate(tasks):
            self._quantize_layer(task, known.pop(task.number), finished)
            tasks[index] = dataclasses.replace(task, inputs=None)
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

    def _inputs(self, layers: Sequence[Layer], group: _Group, walk: Walk | None) -> dict[tuple[Source, ...], Inputs]:
        """What is known of the inputs of layers, as the model is now."""
        wanted = [sources for sources in map(source_of, layers) if sources is not None and sources in group.sources]
        wanted = list(dict.fromkeys(wanted))
        if not wanted or walk is None:
            return {}
        return dict(zip(wanted, measure(walk.observe, wanted), strict=True))

    def _replace(self, layer: Layer, new: ir.Value, method: str, error: float) -> None:
        self._products.update(
            (node, (layer.rows, layer.columns)) for node in layer.nodes if is_op(node, "Gemm", "MatMul")
        )
        replace_weight(self.editor, layer, new, {"method": method, "error": float(f"{error:.3g}")})

    def _blocks(self, layer: Layer) -> Blocks:
        return layer.blocks(self._options.block_size)


def _measured(group: _Group) -> list[ir.Node]:
    """The nodes of a group whose inputs are looked at."""
    return [node for _, layer in group.layers if source_of(layer) is not None for node in layer.nodes]


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
