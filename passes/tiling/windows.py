"""Cuts of operators that slide a window over an image: the window needs a halo, and padding only where the image ends.

Letters: k the taps, s the stride, d the dilation, p the padding in front. Output o reads the inputs from `o * s - p`
on, `(k - 1) * d + 1` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from optimizer.ir.query import array, input_at, int_attribute, ints_attribute, string_attribute
from passes.tiling.cut import WHOLE, Cut, Request, Window

__all__ = ["WINDOW_RULES"]

Rule = Callable[[Request], Cut | None]


def _conv(request: Request) -> Cut | None:
    """Conv: along the images, the output channels, or an axis of the image."""
    kernel = request.input_shape(1)
    image = request.input_shape(0)
    if kernel is None or image is None:
        return None
    window = request.window
    others = (WHOLE,) * (len(request.node.inputs) - 1)
    if window.axis == 0:
        return Cut((window, *others), window)
    if window.axis == 1:
        return _channels(request, image[1], kernel)
    return _slide(request, kernel[2:], others)


def _channels(request: Request, channels: int, kernel: tuple[int, ...]) -> Cut | None:
    """Each output channel has its own filter; in a depthwise convolution its own input channel too."""
    groups = int_attribute(request.node, "group", 1)
    window = request.window
    filters = (Window(0, window.start, window.stop),) * (len(request.node.inputs) - 1)
    if groups == 1:
        return Cut((WHOLE, *filters), window)
    if groups == channels == kernel[0]:
        return Cut((window, *filters), window, {"group": ir.AttrInt64("group", window.size)})
    return None


def _pool(request: Request) -> Cut | None:
    """MaxPool and AveragePool."""
    window = request.window
    kernel = ints_attribute(request.node, "kernel_shape")
    if kernel is None or request.output != 0 or _reads_indices(request.node):
        return None
    if window.axis < 2:
        return Cut((window,), window)
    counted = int_attribute(request.node, "count_include_pad", 0)
    if counted and int_attribute(request.node, "ceil_mode", 0):
        return None  # What lies behind the padding is not counted, the padding is.
    return _slide(request, kernel, ())


def _reads_indices(node: ir.Node) -> bool:
    return any(output.name and (output.uses() or output.is_graph_output()) for output in node.outputs[1:])


def _slide(request: Request, kernel: tuple[int, ...], others: tuple[Window, ...]) -> Cut | None:
    node, window = request.node, request.window
    image = request.input_shape(0)
    pads = None if image is None else _pads(request, image[2:], kernel)
    if image is None or pads is None:
        return None
    rank, i = len(kernel), window.axis - 2
    stride, reach = _ints(node, "strides", rank)[i], (kernel[i] - 1) * _ints(node, "dilations", rank)[i] + 1
    first = window.start * stride - pads[i]
    last = (window.stop - 1) * stride - pads[i] + reach
    size = image[window.axis]
    before, after = max(0, -first), max(0, last - size)
    if before >= reach or after >= reach:
        return None  # A window that lies in the padding alone.
    cut_pads = list(pads)
    cut_pads[i], cut_pads[rank + i] = before, after
    attributes: dict[str, ir.Attr | None] = {"pads": ir.AttrInt64s("pads", cut_pads), "auto_pad": None}
    if int_attribute(node, "ceil_mode", 0):
        # The other axes: what the mode added behind them becomes padding.
        for axis in range(rank):
            if axis != i:
                cut_pads[rank + axis] = _pad_behind(request, image, kernel, pads, axis)
                if cut_pads[rank + axis] >= kernel[axis]:
                    return None
        attributes |= {"pads": ir.AttrInt64s("pads", cut_pads), "ceil_mode": None}
    return Cut((Window(window.axis, max(first, 0), min(last, size)), *others), window, attributes)


def _pad_behind(
    request: Request, image: tuple[int, ...], kernel: tuple[int, ...], pads: tuple[int, ...], axis: int
) -> int:
    rank = len(kernel)
    stride = _ints(request.node, "strides", rank)[axis]
    reach = (kernel[axis] - 1) * _ints(request.node, "dilations", rank)[axis] + 1
    needed = (request.output_shape[axis + 2] - 1) * stride + reach - image[axis + 2] - pads[axis]
    return max(needed, 0)


def _pads(request: Request, image: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...] | None:
    """The padding in front of each axis, then behind each, with `auto_pad` worked out."""
    node, rank = request.node, len(kernel)
    mode = string_attribute(node, "auto_pad", "NOTSET")
    if mode == "NOTSET":
        return ints_attribute(node, "pads") or (0,) * (2 * rank)
    if mode == "VALID":
        return (0,) * (2 * rank)
    if int_attribute(node, "ceil_mode", 0):
        return None
    strides, dilations = _ints(node, "strides", rank), _ints(node, "dilations", rank)
    front, behind = [], []
    for size, k, s, d in zip(image, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small = total // 2
        front.append(small if mode == "SAME_UPPER" else total - small)
        behind.append(total - front[-1])
    return (*front, *behind)


def _ints(node: ir.Node, name: str, rank: int) -> tuple[int, ...]:
    return ints_attribute(node, name) or (1,) * rank


def _conv_transpose(request: Request) -> Cut | None:
    """ConvTranspose: input i gives the outputs from `i * s - p` on, `(k - 1) * d + 1` of them."""
    node, window = request.node, request.window
    image, kernel = request.input_shape(0), request.input_shape(1)
    others = (WHOLE,) * (len(node.inputs) - 1)
    if image is None or kernel is None:
        return None
    if window.axis == 0:
        return Cut((window, *others), window)
    if window.axis == 1:
        filters = (window, *(Window(0, window.start, window.stop),) * (len(others) - 1))
        return Cut((WHOLE, *filters), window) if int_attribute(node, "group", 1) == 1 else None
    if string_attribute(node, "auto_pad", "NOTSET") != "NOTSET" or "output_shape" in node.attributes:
        return None
    rank, i = len(kernel) - 2, window.axis - 2
    stride, reach = _ints(node, "strides", rank)[i], (kernel[i + 2] - 1) * _ints(node, "dilations", rank)[i] + 1
    pads = list(ints_attribute(node, "pads") or (0,) * (2 * rank))
    first = max(-((reach - 1 - window.start - pads[i]) // stride), 0)
    last = min((window.stop - 1 + pads[i]) // stride + 1, image[window.axis])
    if last <= first:
        return None
    before = window.start - (first * stride - pads[i])
    after = (last - 1) * stride + reach - pads[i] - window.stop
    if before < 0 or after < 0:
        return None  # Some of the outputs get nothing from any input.
    pads[i], pads[rank + i] = before, after
    extra = list(ints_attribute(node, "output_padding") or (0,) * rank)
    extra[i] = 0
    attributes: dict[str, ir.Attr | None] = {
        "pads": ir.AttrInt64s("pads", pads),
        "output_padding": ir.AttrInt64s("output_padding", extra),
    }
    return Cut((Window(window.axis, first, last), *others), window, attributes)


def _resize(request: Request) -> Cut | None:
    """Resize to a whole multiple of the size by copying the nearest: output o is input `o // factor`."""
    node, window = request.node, request.window
    image, result = request.input_shape(0), request.output_shape
    if (
        image is None
        or not _copies_the_nearest(node)
        or any(out % size for out, size in zip(result, image, strict=True))
    ):
        return None
    factors = [out // size for out, size in zip(result, image, strict=True)]
    given = array(input_at(node, 2))
    if given is not None and given.size and given.tolist() != factors:
        return None
    factor = factors[window.axis]
    first, last = window.start // factor, -(-window.stop // factor)
    windows = (Window(window.axis, first, last), WHOLE, WHOLE)
    gives = Window(window.axis, first * factor, last * factor)
    scales = np.array(factors, np.float32)
    return Cut(windows, gives, constants={2: scales})


def _copies_the_nearest(node: ir.Node) -> bool:
    if string_attribute(node, "mode", "nearest") != "nearest" or "axes" in node.attributes:
        return False
    if string_attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    rounding = string_attribute(node, "nearest_mode", "round_prefer_floor")
    coordinates = string_attribute(node, "coordinate_transformation_mode", "half_pixel")
    # With half_pixel no output of a whole factor lies in the middle between two inputs.
    return (coordinates, rounding) == ("asymmetric", "floor") or (
        coordinates == "half_pixel" and rounding in ("round_prefer_floor", "round_prefer_ceil")
    )


def _global_pool(request: Request) -> Cut | None:
    return Cut((request.window,), request.window) if request.window.axis < 2 else None


WINDOW_RULES: Mapping[str, Rule] = {
    "AveragePool": _pool,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MaxPool": _pool,
    "Resize": _resize,
}
"""By operator."""
