"""What calibration tells about the inputs X of layers: XᵀX, summed up sample by sample."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.calibration import Samples, observe
from optimizer.errors import InputError
from optimizer.ir.query import int_attribute, ints_attribute, string_attribute
from passes.quantization.blocks import Floats
from passes.quantization.gptq import Elimination
from passes.quantization.weight_layers import Layer

__all__ = ["Inputs", "Source", "measure", "source_of"]

_PATCHES_BYTES = 1 << 26
"""Of the rows of X that are made from an image at a time."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a layer on all samples.

    Attributes:
        gram: XᵀX `[K, K]`.
        magnitude: The mean of |X| over its rows `[K]`.
    """

    gram: Floats
    magnitude: Floats

    @functools.cached_property
    def elimination(self) -> Elimination:
        """What GPTQ needs of them."""
        return Elimination.of(self.gram)


@dataclass(frozen=True)
class Source:
    """Where the rows of X are from.

    Attributes:
        value: The name of the value in the graph.
        turned: Whether it is Xᵀ (`Gemm` with transA).
        kernel: Of a convolution: its sizes; empty for a matrix.
        strides: Of a convolution.
        pads: Of a convolution, as ONNX orders them.
        dilations: Of a convolution.
    """

    value: str
    turned: bool = False
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()

    def rows(self, array: npt.NDArray[np.generic]) -> Iterator[Floats]:
        """X in parts, each `[rows, K]`: an image of a convolution makes one."""
        if not self.kernel:
            yield np.asarray(array.T if self.turned else array.reshape(-1, array.shape[-1]), np.float32)
            return
        ends = len(self.kernel)
        pads = [(0, 0), *zip(self.pads[:ends], self.pads[ends:], strict=True)]
        for image in np.asarray(array, np.float32):
            yield from self._patches(np.pad(image, pads))

    def _patches(self, image: Floats) -> Iterator[Floats]:
        """Each place of the kernel on an image `[I, H, W]` as a row, with the channels next to each other.

        Some rows of places at a time: all of them together are as many times the image as the kernel has elements.
        """
        steps = list(zip(self.kernel, self.strides, self.dilations, strict=True))
        counts = [
            (size - dilation * (length - 1) - 1) // stride + 1
            for size, (length, stride, dilation) in zip(image.shape[1:], steps, strict=True)
        ]
        row_bytes = 4 * len(image) * math.prod((*self.kernel, *counts[1:]))
        at_once = max(1, _PATCHES_BYTES // max(row_bytes, 1))
        for top in range(0, counts[0], at_once):
            firsts = [top, *(0 for _ in counts[1:])]
            sizes = [min(at_once, counts[0] - top), *counts[1:]]
            parts = []
            for position in itertools.product(*map(range, self.kernel)):
                places = [
                    slice(
                        offset * dilation + stride * first, offset * dilation + stride * (first + size - 1) + 1, stride
                    )
                    for offset, first, size, (_, stride, dilation) in zip(position, firsts, sizes, steps, strict=True)
                ]
                parts.append(image[(slice(None), *places)].reshape(len(image), -1))
            yield np.concatenate(parts).T


def source_of(layer: Layer) -> tuple[Source, ...] | None:
    """Where the inputs of a layer can be observed, for each node that reads the weight; `None` if nowhere.

    There is no X for the table of a `Gather`, for a convolution in groups (each has its own), and inside a subgraph.
    """
    if layer.scope.parent is not None or layer.scope.in_function:
        return None
    sources = [_source(node, layer) for node in layer.nodes]
    found = tuple(dict.fromkeys(source for source in sources if source is not None))
    return found or None


def _source(node: ir.Node, layer: Layer) -> Source | None:
    value = node.inputs[0]
    if node.op_type == "Gather" or value is None or value.name is None or value.is_initializer():
        return None
    if node.op_type != "Conv":
        return Source(value.name, turned=node.op_type == "Gemm" and int_attribute(node, "transA", 0) == 1)
    if int_attribute(node, "group", 1) != 1 or string_attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    kernel = layer.shape[2:]
    ones = (1,) * len(kernel)
    return Source(
        value.name,
        kernel=kernel,
        strides=ints_attribute(node, "strides") or ones,
        pads=ints_attribute(node, "pads") or (0,) * (2 * len(kernel)),
        dilations=ints_attribute(node, "dilations") or ones,
    )


def measure(model: ir.Model, wanted: Sequence[tuple[Source, ...]], samples: Samples) -> list[Inputs]:
    """The inputs of layers on all samples. One sample's values are held at a time, beside the results.

    Args:
        model: Run as it is.
        wanted: For each result, where its rows are from.
        samples: What to run it on.

    Raises:
        InputError: An input of a layer is not finite, or all have no rows.
    """
    grams: list[Floats] = [np.zeros(0, np.float32)] * len(wanted)
    sums: list[Floats] = [np.zeros(0, np.float32)] * len(wanted)
    counts = [0] * len(wanted)
    names = list(dict.fromkeys(source.value for sources in wanted for source in sources))
    for values in observe(model, names, samples):
        seen = dict(zip(names, values, strict=True))
        for index, sources in enumerate(wanted):
            for source in sources:
                for rows in source.rows(seen[source.value]):
                    if not counts[index]:
                        grams[index] = np.zeros((rows.shape[1], rows.shape[1]), np.float32)
                        sums[index] = np.zeros(rows.shape[1], np.float32)
                    grams[index] += rows.T @ rows
                    sums[index] += np.abs(rows).sum(axis=0)
                    counts[index] += len(rows)
    for sources, gram, count in zip(wanted, grams, counts, strict=True):
        if not count:
            raise InputError(f"calibration data gives no rows of {sources[0].value!r}; give inputs that are not empty")
        if not np.isfinite(gram).all():
            raise InputError(
                f"{sources[0].value!r} is NaN, infinite or too large on the calibration data; leave out "
                "the sets of inputs that make it so"
            )
    return [Inputs(gram, total / np.float32(count)) for gram, total, count in zip(grams, sums, counts, strict=True)]
