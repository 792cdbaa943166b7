"""Depthwise convolutions from registers: windows, strides, dilations, edges, odd channels, symbolic sizes, bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.gpu import depthwise
from backends.gpu.depthwise import PixelTile, best_pixel_tile
from backends.relax.kernel import decode, inline
from backends.relax.stage_window import StageWindow
from optimizer.gpus import GPUS
from tests.backends.running import conv_relu, parse
from tests.gpu.rules import agrees, cuda_source, fused, launches, nvidia

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def conv(
    shape: str,
    channels: int,
    kernel: tuple[int, int],
    stride: int = 1,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    dilation: int = 1,
    gpu: str = "opencl",
    **sizes: int,
) -> None:
    text = conv_relu("float", shape, stride, pads, dilation, channels)
    model = parse(text, {"w": normal(channels, 1, *kernel), "b": normal(channels)})
    agrees(model, "depthwise", depthwise.lower, sizes, GPUS[gpu])


@settings(max_examples=24, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(5, 30), st.integers(5, 30)),
    kernel=st.sampled_from([(1, 3), (3, 1), (3, 3), (4, 2), (5, 5), (7, 7)]),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    channels=st.sampled_from([3, 8, 30, 96, 280]),
    gpu=st.sampled_from(sorted(GPUS)),
)
def test_any_window_agrees(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, pads: tuple[int, ...], channels: int, gpu: str
) -> None:
    if all(s + pads[i] + pads[i + 2] >= k for i, (s, k) in enumerate(zip(size, kernel, strict=True))):
        conv(f"2,{channels},{size[0]},{size[1]}", channels, kernel, stride, pads, 1, gpu)


@pytest.mark.parametrize("gpu", ["opencl", "sm_80"])
@pytest.mark.parametrize("dilation", [2, 3])
def test_dilated(dilation: int, gpu: str) -> None:
    conv("1,8,25,27", 8, (3, 3), 1, (2, 2, 2, 2), dilation, gpu)


@pytest.mark.parametrize(("h", "w"), [(9, 9), (9, 30), (31, 42)])
@pytest.mark.parametrize(("channels", "kernel"), [(10, 3), (16, 3), (16, 5)])
def test_symbolic_image_sizes(channels: int, kernel: int, h: int, w: int) -> None:
    before = kernel // 2
    conv(f"n,{channels},h,w", channels, (kernel, kernel), 2, (before,) * 4, 1, "sm_80", n=2, h=h, w=w)


def test_bytes_are_added_up_in_32_bits() -> None:
    text = """g (uint8[1,8,9,9] x) => (float[1,8,9,9] y) {
        a = DequantizeLinear(x, one, zero) f = DequantizeLinear(w, one)
        y = Conv<group=8, kernel_shape=[3,3], pads=[1,1,1,1]>(a, f) }"""
    weights = RNG.integers(-128, 128, (8, 1, 3, 3)).astype(np.int8)
    model = parse(text, {"w": weights, "one": np.array(1, np.float32), "zero": np.array(0, np.uint8)})
    agrees(model, "depthwise", depthwise.lower)


def test_what_is_no_depthwise_convolution_is_left_to_others() -> None:
    model = parse("g (float[2,4,5] x) => (float[2,4,5] y) { y = Softmax(x) }")
    (function,) = fused(model).functions.values()
    kernel = decode(function)
    assert kernel is not None and depthwise.lower(inline(kernel), GPUS["opencl"]) is None


def test_tiles_are_larger_where_threads_are_enough() -> None:
    window = StageWindow(3, 3, 1, 1, 1, 1, 1, 1, 1)
    a100 = GPUS["sm_80"]
    assert best_pixel_tile(window, [1, 112, 112, 96], 4, a100) != PixelTile(1, 1)
    assert best_pixel_tile(window, [1, 7, 7, 32], 4, a100) == PixelTile(1, 1)
    large = StageWindow(7, 7, 1, 1, 1, 1, 3, 3, 3)
    assert best_pixel_tile(large, [8, 112, 112, 96], 4, a100).rows == 1  # registers do not hold all filters


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("channels", "size", "kernel", "stride"), [(96, 112, 3, 2), (144, 56, 3, 1), (480, 14, 5, 1)])
def test_no_spills_and_vectors(channels: int, size: int, kernel: int, stride: int, architecture: str) -> None:
    before = kernel // 2
    text = conv_relu("float", f"1,{channels},{size},{size}", stride, (before,) * 4, 1, channels)
    model = parse(text, {"w": normal(channels, 1, kernel, kernel), "b": normal(channels)})
    function, gpu = fused(model).one("depthwise"), GPUS[architecture]
    assert len(launches(function, depthwise.lower, gpu)) == 1
    compiled = nvidia().compile(cuda_source(function, depthwise.lower, gpu).source, architecture)
    (resources,) = compiled.kernels.values()
    assert resources.spilled_bytes == 0 and resources.registers <= gpu.registers
    assert "v4.f32" in compiled.ptx or "v4.b32" in compiled.ptx
