"""What calibration tells about the inputs X of layers: XᵀX, summed up sample by sample."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.errors import InputError
from optimizer.executable import Array
from optimizer.ir.query import int_attribute, ints_attribute, string_attribute
from passes.quantization.blocks import Floats
from passes.quantization.gptq import Elimination
from passes.quantization.weight_layers import Layer

__all__ = ["Inputs", "Source", "measure", "source_of"]

_PATCHES_BYTES = 1 << 26
"""Of the rows of X that are made from an image at a time."""
_ROWS = 1024
"""That are gathered before they are added to XᵀX."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a layer on all samples.

    Attributes:
        gram: XᵀX `[K, K]`.
        magnitude: The mean of |X| over its rows `[K]`.
        rows: How many X has.
    """

    gram: Floats
    magnitude: Floats
    rows: int

    @functools.cached_property
    def elimination(self) -> Elimination:
        """What GPTQ needs of them."""
        return Elimination.of(self.gram, self.rows)


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


class _Sum:
    """XᵀX of rows that come bit by bit: they are gathered, since each product goes through all of the sum."""

    def __init__(self) -> None:
        self.count = 0
        self.gram = np.zeros((0, 0), np.float32)
        self.magnitude = np.zeros(0, np.float32)
        self._rows: list[Floats] = []
        self._waiting = 0

    def add(self, rows: Floats) -> None:
        """Take rows into account."""
        if not self.count:
            self.gram = np.zeros((rows.shape[1], rows.shape[1]), np.float32)
            self.magnitude = np.zeros(rows.shape[1], np.float32)
        self.count += len(rows)
        self.magnitude += np.abs(rows).sum(axis=0)
        self._rows.append(rows)
        self._waiting += len(rows)
        if self._waiting >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Add up what waits."""
        if self._rows:
            rows = self._rows[0] if len(self._rows) == 1 else np.concatenate(self._rows)
            self.gram += rows.T @ rows
            self._rows, self._waiting = [], 0


def measure(
    observe: Callable[[Sequence[str]], Iterator[list[Array]]], wanted: Sequence[tuple[Source, ...]]
) -> list[Inputs]:
    """The inputs of layers on all samples. A few rows of them are held at a time, beside the results.

    Args:
        observe: Gives the values of these names, sample by sample.
        wanted: For each result, where its rows are from.

    Raises:
        InputError: An input of a layer is not finite, or all have no rows.
    """
    sums = [_Sum() for _ in wanted]
    names = list(dict.fromkeys(source.value for sources in wanted for source in sources))
    for values in observe(names):
        seen = dict(zip(names, values, strict=True))
        for total, sources in zip(sums, wanted, strict=True):
            for source in sources:
                for rows in source.rows(seen[source.value]):
                    total.add(rows)
    for sources, total in zip(wanted, sums, strict=True):
        total.flush()
        if not total.count:
            raise InputError(f"calibration data gives no rows of {sources[0].value!r}; give inputs that are not empty")
        if not np.isfinite(total.gram).all():
            raise InputError(
                f"{sources[0].value!r} is NaN, infinite or too large on the calibration data; leave out "
                "the sets of inputs that make it so"
            )
    return [Inputs(total.gram, total.magnitude / np.float32(total.count), total.count) for total in sums]
