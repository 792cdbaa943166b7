"""Convolutions of bfloat16: windows, strides, dilations, groups, odd channel numbers, symbolic sizes, tails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.cpu.tiles import Tiles
from backends.relax.packing import conv_panels
from backends.relax.values import ConvShape
from optimizer.executable import Executable
from optimizer.target import CPUS, Target
from tests.backends.bfloat16 import TARGETS, Array, agrees, native, random, usable
from tests.backends.running import conv_relu

RNG = np.random.default_rng(13)


def convolved(x: Array, w: Array, stride: int, pads: Sequence[int], dilation: int, groups: int) -> Array:
    """[N, C, H, W] with weights [O, C / groups, KH, KW], in float64; pads in ONNX's order."""
    top, left, bottom, right = pads
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    w = w.astype(np.float64)
    n, _, height, width = x.shape
    out, per_group, kh, kw = w.shape
    oh = (height - (kh - 1) * dilation - 1) // stride + 1
    ow = (width - (kw - 1) * dilation - 1) // stride + 1
    y = np.zeros((n, groups, out // groups, oh, ow))
    data, weights = x.reshape(n, groups, per_group, height, width), w.reshape(groups, -1, per_group, kh, kw)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dilation, i * dilation + (oh - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (ow - 1) * stride + 1, stride)
            y += np.einsum("ngchw,goc->ngohw", data[..., rows, columns], weights[..., i, j])
    return y.reshape(n, out, oh, ow)


def conv(
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: int = 1,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    dilation: int = 1,
    group: int = 1,
    target: str = "cpu",
    declared: str = "",
) -> Executable:
    """Convolution, bias and Relu against float64."""
    data, weights, bias = random(RNG, *x), random(RNG, *w), random(RNG, w[0])
    added = bias.astype(np.float64)[:, None, None]
    wanted = np.maximum(convolved(data, weights, stride, pads, dilation, group) + added, 0)
    size = convolved(np.abs(data), np.abs(weights), stride, pads, dilation, group) + np.abs(added)
    text = conv_relu("bfloat16", declared or ",".join(map(str, x)), stride, pads, dilation, group)
    terms = int(np.prod(w[1:])) + 1
    return agrees(text, {"w": weights, "b": bias}, [data], wanted, size, terms, usable(target))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    channels=st.sampled_from([(3, 20, 1), (8, 8, 1), (8, 12, 4), (6, 6, 6), (33, 33, 33), (16, 50, 1), (9, 6, 3)]),
    target=st.sampled_from(TARGETS),
)
def test_any_window_agrees(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int,
    pads: tuple[int, ...],
    channels: tuple[int, int, int],
    target: str,
) -> None:
    c, out, group = channels
    conv((1, c, *size), (out, c // group, *kernel), stride, pads, 1, group, target)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("channels", [(7, 19), (8, 33)])
def test_instruction_sets_agree(target: str, channels: tuple[int, int]) -> None:
    c, out = channels
    conv((2, c, 11, 30), (out, c, 3, 3), 1, (1, 1, 1, 1), target=target)


@pytest.mark.parametrize("group", [1, 2, 6])
def test_dilated(group: int) -> None:
    conv((2, 6, 15, 17), (12, 6 // group, 3, 3), 1, (2, 2, 2, 2), 2, group)


@pytest.mark.parametrize(("h", "w"), [(9, 9), (9, 30), (30, 41)])
@pytest.mark.parametrize(("channels", "group"), [(5, 1), (6, 1), (5, 5)])
def test_symbolic_image_sizes(h: int, w: int, channels: int, group: int) -> None:
    out = channels if group > 1 else 10
    conv((2, channels, h, w), (out, channels // group, 3, 3), 2, (1, 1, 1, 1), 1, group, declared=f"n,{channels},h,w")


@pytest.mark.parametrize("channels", [15, 16])
def test_every_pixel_a_row(channels: int) -> None:
    conv((2, channels, 7, 9), (21, channels, 1, 1))


@pytest.mark.parametrize("channels", [5, 6])
def test_one_axis(channels: int) -> None:
    x, w = random(RNG, 2, channels, 19), random(RNG, 6, channels, 4)
    wanted = convolved(x[:, :, None], w[:, :, None], 1, (0, 2, 0, 1), 1, 1)[:, :, 0]
    size = convolved(np.abs(x)[:, :, None], np.abs(w)[:, :, None], 1, (0, 2, 0, 1), 1, 1)[:, :, 0]
    text = f"g (bfloat16[2,{channels},19] x) => (bfloat16[2,6,l] y) {{ y = Conv<pads=[2,1]>(x, w) }}"
    agrees(text, {"w": w}, [x], wanted, size, 4 * channels)


@pytest.mark.parametrize("kernel", [1, 3])
def test_one_channel_a_group(kernel: int) -> None:
    conv((1, 3, 9, 9), (6, 1, kernel, kernel), 2, group=3)


def test_weights_computed_at_run_time() -> None:
    x, w = random(RNG, 1, 4, 9, 9), random(RNG, 6, 2, 3, 3)
    wanted, size = (convolved(a, b, 1, (0, 0, 0, 0), 1, 2) for a, b in ((x, w), (np.abs(x), np.abs(w))))
    text = "g (bfloat16[1,4,9,9] x, bfloat16[6,2,3,3] w) => (bfloat16[1,6,7,7] y) { y = Conv<group=2>(x, w) }"
    agrees(text, {}, [x, w], wanted, size, 18)


def test_a_residual_is_added_before_rounding() -> None:
    x, w = random(RNG, 1, 20, 14, 14), random(RNG, 20, 20, 3, 3)
    wanted = convolved(x, w, 1, (1, 1, 1, 1), 1, 1) + x.astype(np.float64)
    size = convolved(np.abs(x), np.abs(w), 1, (1, 1, 1, 1), 1, 1) + np.abs(x).astype(np.float64)
    text = """g (bfloat16[1,20,14,14] x) => (bfloat16[1,20,14,14] y) {
        t = Conv<pads=[1,1,1,1]>(x, w) y = Add(t, x) }"""
    agrees(text, {"w": w}, [x], wanted, size, 181)


def test_weights_from_beyond_the_second_cache_are_asked_for_ahead() -> None:
    conv((1, 256, 6, 6), (640, 256, 3, 3), 1, (1, 1, 1, 1))


@pytest.mark.parametrize(("kernel", "channels"), [(3, 32), (3, 5), (1, 32)])
def test_pairs_are_multiplied_by_the_processor_that_can(kernel: int, channels: int, tmp_path: Path) -> None:
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    if not cpu.bfloat16:
        pytest.skip("this machine lacks AVX512_BF16")
    assert native(conv((1, channels, 14, 15), (32, channels, kernel, kernel), kernel), tmp_path)


@pytest.mark.parametrize("target", TARGETS[:3])
def test_winograd_sums_in_float32(target: str) -> None:
    executable = conv((1, 64, 17, 18), (96, 64, 3, 3), 1, (1, 1, 1, 1), target=target)
    names = [row.name for row in executable.profile([random(RNG, 1, 64, 17, 18)], 1, 1)]
    assert any("winograd" in name for name in names)


def test_winograd_is_held_against_products_of_pairs() -> None:
    widening, pairing = Tiles(CPUS["x86-64-v4"]), Tiles(CPUS["znver4"])
    assert [t.winograd_width(ConvShape(1, 9, 9, 64, 64, "bfloat16")) for t in (widening, pairing)] == [32, None]


@pytest.mark.parametrize("channels", [1, 4, 5])
@pytest.mark.parametrize("groups", [1, 3])
def test_channels_of_a_tap_share_rows(channels: int, groups: int) -> None:
    out, kh, kw = 6, 2, 3
    weights = random(RNG, groups * out, channels, kh, kw)
    pairs = -(-channels // 2)
    packed = conv_panels(weights, groups=groups, width=4, together=2)
    assert packed.shape == (groups, 2, kh, kw * pairs, 8)
    for g, o, c, i, j in np.ndindex(groups, out, channels, kh, kw):
        assert packed[g, o // 4, i, j * pairs + c // 2, o % 4 * 2 + c % 2] == weights[g * out + o, c, i, j]
    assert np.count_nonzero(packed) == np.count_nonzero(weights)
