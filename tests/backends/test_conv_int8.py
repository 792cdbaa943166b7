"""Integer convolutions of quantized images: windows, strides, dilations, groups, padding with the zero point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.relax.packing import byte_conv_panels, byte_depthwise
from tests.backends.bfloat16 import instructions, usable
from tests.backends.int8 import TARGETS, Array, close, number, run, some_bytes
from tests.backends.running import compiled, oracle, parse

RNG = np.random.default_rng(19)

WINDOWS = {
    "3x3": (8, 20, (3, 3), 1, 1, 1, 1),
    "3x3 stride 2": (8, 20, (3, 3), 2, 1, 1, 1),
    "1x1": (10, 40, (1, 1), 1, 0, 1, 1),
    "1x1 stride 2": (8, 20, (1, 1), 2, 0, 1, 1),
    "1x1 padded": (8, 20, (1, 1), 1, 1, 1, 1),
    "7x7 of three channels": (3, 20, (7, 7), 2, 3, 1, 1),
    "5x1": (5, 6, (5, 1), 1, 2, 1, 1),
    "dilated": (8, 20, (3, 3), 1, 2, 2, 1),
    "groups of four": (8, 20, (3, 3), 1, 1, 1, 2),
    "groups of three": (6, 8, (3, 3), 1, 1, 1, 2),
    "depthwise": (37, 37, (3, 3), 1, 1, 1, 37),
    "depthwise stride 2": (16, 16, (5, 5), 2, 2, 1, 16),
    "depthwise, two each": (6, 12, (3, 3), 1, 1, 1, 6),
}
"""Input and output channels, taps, stride, padding, dilation, groups."""


def graph(kind: str, sizes: str, stride: int, pad: int, dilation: int, group: int) -> str:
    """A convolution of bytes, a bias, and a Relu."""
    pads = ",".join([str(pad)] * 4)
    return f"""g ({kind}[{sizes}] x) => (float[n,o,oh,ow] y) {{
        d = DequantizeLinear(x, s, z) e = DequantizeLinear<axis=0>(w, t)
        u = Conv<strides=[{stride},{stride}], pads=[{pads}], dilations=[{dilation},{dilation}], group={group}>(d, e, b)
        y = Relu(u) }}"""


def convolution(x: Array, w: Array, stride: int, pad: int, dilation: int, group: int) -> Array:
    """Of float64 images, tap by tap."""
    n, _, *image = x.shape
    out, channels, kh, kw = w.shape
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    oh, ow = ((i + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for i, k in zip(image, (kh, kw), strict=True))
    y = np.zeros((n, group, out // group, oh, ow))
    own = w.reshape(group, out // group, channels, kh, kw)
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dilation, i * dilation + (oh - 1) * stride + 1, stride)
            columns = slice(j * dilation, j * dilation + (ow - 1) * stride + 1, stride)
            part = padded[:, :, rows, columns].reshape(n, group, channels, oh, ow)
            y += np.einsum("ngchw,goc->ngohw", part, own[..., i, j])
    return y.reshape(n, out, oh, ow)


CASES = [
    *(("cpu", kind, zero) for kind, zero in (("uint8", 0), ("uint8", 77), ("int8", 0), ("int8", -128))),
    *((target, "uint8", 77) for target in TARGETS[1:]),
]


@pytest.mark.parametrize(("target", "kind", "zero"), CASES)
@pytest.mark.parametrize("window", WINDOWS)
def test_sums_are_exact(window: str, target: str, kind: str, zero: int) -> None:
    c, out, taps, stride, pad, dilation, group = WINDOWS[window]
    x, w = some_bytes(RNG, kind, 2, c, 9, 18), some_bytes(RNG, "int8", out, c // group, *taps)
    if taps == (5, 1):
        x = x[..., :7]
    p = {
        "s": number(0.013),
        "z": number(zero, kind),
        "w": w,
        "t": RNG.uniform(0.001, 0.02, out).astype(np.float32),
        "b": RNG.standard_normal(out).astype(np.float32),
    }
    sizes = ",".join(map(str, x.shape))
    y, _ = run(graph(kind, sizes, stride, pad, dilation, group), p, [x], usable(target))
    scale = (0.013 * p["t"].astype(np.float64))[:, None, None]
    sums = convolution(x.astype(np.float64) - zero, w.astype(np.float64), stride, pad, dilation, group)
    bias = p["b"].astype(np.float64)[:, None, None]
    wanted = sums * float(np.float32(0.013)) * p["t"].astype(np.float64)[:, None, None]
    close(y, np.maximum(wanted + bias, 0), np.abs(sums * scale) + np.abs(bias), 5)


@pytest.mark.parametrize("group", [1, 8])
@pytest.mark.parametrize("zero", [0, 50])
@pytest.mark.parametrize("size", [(5, 6), (12, 31)])
def test_symbolic_images(size: tuple[int, int], zero: int, group: int) -> None:
    p = {
        "s": number(0.02),
        "z": number(zero, "uint8"),
        "w": some_bytes(RNG, "int8", 8, 8 // group, 3, 3),
        "t": number(0.01),
        "b": RNG.standard_normal(8).astype(np.float32),
    }
    model = parse(graph("uint8", "n,8,h,w", 1, 1, 1, group), p)
    x = some_bytes(RNG, "uint8", 2, 8, *size)
    np.testing.assert_allclose(compiled(model).run([x], 2)[0], oracle(model, [x])[0], rtol=1e-4, atol=1e-4)


def test_one_spatial_axis() -> None:
    p = {"s": number(0.02), "z": number(9, "uint8"), "w": some_bytes(RNG, "int8", 20, 6, 3), "t": number(0.01)}
    text = """g (uint8[2,6,17] x) => (float[2,20,17] y) {
        d = DequantizeLinear(x, s, z) e = DequantizeLinear(w, t) y = Conv<pads=[1,1]>(d, e) }"""
    x = some_bytes(RNG, "uint8", 2, 6, 17)
    y, _ = run(text, p, [x])
    np.testing.assert_allclose(y, oracle(parse(text, p), [x])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_residual_block_stays_within_a_step(kind: str) -> None:
    middle = 128 if kind == "uint8" else 0
    weights: dict[str, Array] = {
        "a": RNG.integers(-127, 128, (32, 16, 3, 3)).astype(np.int8),
        "c": RNG.integers(-127, 128, (16, 32, 1, 1)).astype(np.int8),
        "t": RNG.uniform(0.0005, 0.001, 32).astype(np.float32),
        "v": RNG.uniform(0.0005, 0.001, 16).astype(np.float32),
        "b": RNG.standard_normal(32).astype(np.float32),
        "s": number(0.03),
        "z": number(middle, kind),
        "h": number(0.02),
        "i": number(middle - 128, kind),
    }
    text = f"""g (float[1,16,10,12] x) => ({kind}[1,16,10,12] y) {{
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear<axis=0>(a, t)
        m = Conv<pads=[1,1,1,1]>(d, e, b) o = Relu(m) q2 = QuantizeLinear(o, h, i) d2 = DequantizeLinear(q2, h, i)
        e2 = DequantizeLinear<axis=0>(c, v) f = Conv(d2, e2) q3 = QuantizeLinear(f, s, z)
        d3 = DequantizeLinear(q3, s, z) r = Add(d3, d) y = QuantizeLinear(r, s, z) }}"""
    model, x = parse(text, weights), RNG.standard_normal((1, 16, 10, 12)).astype(np.float32)
    ours, theirs = compiled(model).run([x], 2)[0], oracle(model, [x])[0]
    steps = np.abs(ours.astype(int) - theirs.astype(int))
    # a flip in the hidden layer moves the sum by less than a step; rounding it and the result may make that two
    assert steps.max() <= 2
    assert (steps > 0).mean() < 0.01


def test_the_rule_multiplies_bytes(tmp_path: Path) -> None:
    p = {"s": number(0.02), "w": some_bytes(RNG, "int8", 64, 32, 3, 3), "t": number(0.01)}
    text = """g (uint8[1,32,14,14] x) => (float[1,64,14,14] y) {
        d = DequantizeLinear(x, s) e = DequantizeLinear(w, t) y = Conv<pads=[1,1,1,1]>(d, e) }"""
    _, executable = run(text, p, [some_bytes(RNG, "uint8", 1, 32, 14, 14)], "cpu:x86-64-v3")
    assert "pmaddwd" in instructions(executable, tmp_path)


@pytest.mark.parametrize(
    ("scale", "form"),
    [(np.full(32, 0.01, np.float32), "DequantizeLinear<axis=1>(w, t)"), (number(0.01), "DequantizeLinear(w, t, m)")],
    ids=["scales of input channels", "zero point"],
)
def test_what_is_no_integer_convolution_is_right_all_the_same(scale: Array, form: str, tmp_path: Path) -> None:
    p = {"s": number(0.02), "w": some_bytes(RNG, "int8", 16, 32, 3, 3), "t": scale, "m": number(3, "int8")}
    text = f"""g (uint8[1,32,8,8] x) => (float[1,16,8,8] y) {{
        d = DequantizeLinear(x, s) e = {form} y = Conv<pads=[1,1,1,1]>(d, e) }}"""
    x = some_bytes(RNG, "uint8", 1, 32, 8, 8)
    y, executable = run(text, p, [x], "cpu:x86-64-v3")
    np.testing.assert_allclose(y, oracle(parse(text, p), [x])[0], rtol=1e-4, atol=1e-2)
    assert "pmaddwd" not in instructions(executable, tmp_path)


def test_filters_in_panels_of_four_channels() -> None:
    taps = some_bytes(RNG, "int8", 6, 5, 2, 3)
    stored = (taps.astype(np.int16) + 128).astype(np.uint8)
    packed = byte_conv_panels(stored, offset=-128, groups=1, width=4, together=4)
    assert (packed.dtype, packed.shape) == (np.dtype("int8"), (1, 2, 2, 3 * 2, 16))
    for o, c, y, x in np.ndindex(8, 8, 2, 3):
        expected = taps[o, c, y, x] if o < 6 and c < 5 else 0
        assert packed[0, o // 4, y, x * 2 + c // 4, o % 4 * 4 + c % 4] == expected
    deep = byte_depthwise(stored[:, :1], offset=-128)
    np.testing.assert_array_equal(deep, taps[:, 0].transpose(1, 2, 0))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize(("scale", "follows"), [(0.03, "QuantizeLinear(m, s, z)"), (0.05, "QuantizeLinear(m, h, z)")])
def test_the_largest_of_bytes_is_taken_as_bytes(kind: str, scale: float, follows: str) -> None:
    p = {"s": number(0.03), "z": number(9, kind), "h": number(scale)}
    text = f"""g (float[1,16,11,13] x) => ({kind}[1,16,h,w] y) {{
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        m = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(d) y = {follows} }}"""
    x = RNG.standard_normal((1, 16, 11, 13)).astype(np.float32)
    y, executable = run(text, p, [x])
    np.testing.assert_array_equal(y, oracle(parse(text, p), [x])[0])
    memory = executable.memory
    assert memory is not None
    assert memory.least < 1.5 * x.nbytes  # the input, and bytes; in float32 there would be as much again


@pytest.mark.parametrize(
    "reader", ["GlobalAveragePool(d)", "AveragePool<kernel_shape=[3,3]>(d)", "Relu(d)", "Add(d, d)"]
)
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_other_readers_of_bytes(reader: str, kind: str) -> None:
    p = {"s": number(0.03), "z": number(9, kind)}
    text = f"""g ({kind}[2,16,9,9] x) => (float[n,c,h,w] y) {{ d = DequantizeLinear(x, s, z) y = {reader} }}"""
    x = some_bytes(RNG, kind, 2, 16, 9, 9)
    y, _ = run(text, p, [x])
    np.testing.assert_allclose(y, oracle(parse(text, p), [x])[0], rtol=1e-5, atol=1e-5)


def test_a_pool_of_bytes_that_is_an_output() -> None:
    p = {"s": number(0.03), "z": number(9, "uint8")}
    text = """g (uint8[2,3,9,9] x) => (float[n,c,h,w] y) {
        d = DequantizeLinear(x, s, z) y = MaxPool<kernel_shape=[2,2]>(d) }"""
    x = some_bytes(RNG, "uint8", 2, 3, 9, 9)
    y, _ = run(text, p, [x])
    np.testing.assert_array_equal(y, oracle(parse(text, p), [x])[0])
