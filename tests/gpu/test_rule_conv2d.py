"""Convolutions as implicit products: windows, strides, dilations, groups, edges, odd channels, symbolic sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.gpu import conv2d
from backends.relax.kernel import decode, inline
from optimizer.gpus import GPUS
from tests.backends.running import conv_relu, parse
from tests.gpu.rules import PlainTiles, agrees, fused

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def conv(
    shape: str,
    filters: tuple[int, ...],
    stride: int = 1,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    dilation: int = 1,
    group: int = 1,
    gpu: str = "opencl",
    **sizes: int,
) -> None:
    text = conv_relu("float", shape, stride, pads, dilation, group)
    model = parse(text, {"w": normal(*filters), "b": normal(filters[0])})
    agrees(model, "conv2d", conv2d.lower, sizes, GPUS[gpu])


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    kernel=st.sampled_from([(2, 2), (1, 3), (3, 1), (3, 3), (4, 2), (5, 5)]),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    channels=st.sampled_from([(3, 20, 1), (8, 8, 1), (8, 12, 4), (16, 50, 1), (16, 80, 2)]),
    gpu=st.sampled_from(sorted(GPUS)),
)
def test_any_window_agrees(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    pads: tuple[int, ...],
    channels: tuple[int, int, int],
    gpu: str,
) -> None:
    c, out, group = channels
    conv(f"2,{c},{size[0]},{size[1]}", (out, c // group, *kernel), stride, pads, 1, group, gpu)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_dilated(group: int) -> None:
    conv("2,8,15,17", (16, 8 // group, 3, 3), 1, (2, 2, 2, 2), 2, group)


@pytest.mark.parametrize(("h", "w"), [(9, 9), (9, 30), (30, 41)])
@pytest.mark.parametrize("group", [1, 5])
def test_symbolic_image_sizes(h: int, w: int, group: int) -> None:
    conv("n,10,h,w", (10, 10 // group, 3, 3), 2, (1, 1, 1, 1), 1, group, n=2, h=h, w=w)


def test_residual_in_the_tail() -> None:
    text = """g (float[1,8,9,9] x, float[1,20,9,9] r) => (float[1,20,9,9] y) {
        t = Conv<pads=[1,1,1,1]>(x, w, b) u = Add(t, r) y = Relu(u) }"""
    agrees(parse(text, {"w": normal(20, 8, 3, 3), "b": normal(20)}), "conv2d", conv2d.lower)


def test_what_is_no_convolution_is_left_to_others() -> None:
    model = parse("g (float[2,4,5] x) => (float[2,4,5] y) { y = Softmax(x) }")
    (function,) = fused(model).functions.values()
    kernel = decode(function)
    assert kernel is not None and conv2d.lower(inline(kernel), GPUS["opencl"]) is None


def test_panels_of_rows_side_by_side() -> None:
    class Pairs(PlainTiles):
        def together(self, dtype: str) -> int:
            return 2

    model = parse(conv_relu("float", "1,8,9,9", 1, [1, 1, 1, 1]), {"w": normal(8, 8, 3, 3), "b": normal(8)})
    agrees(model, "conv2d", conv2d.lower, tiles=Pairs())
