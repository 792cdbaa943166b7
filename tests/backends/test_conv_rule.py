"""Convolutions: windows, strides, dilations, groups, edges, odd channel numbers, symbolic sizes."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.cpu.taps import Taps, edges
from tests.backends.running import check, compiled, conv_relu, distance, oracle, parse

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def conv(
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: int = 1,
    pads: tuple[int, ...] = (0, 0, 0, 0),
    dilation: int = 1,
    group: int = 1,
    declared: str = "",
) -> None:
    shape = declared or ",".join(map(str, x))
    text = conv_relu("float", shape, stride, pads, dilation, group)
    check(parse(text, {"w": normal(*w), "b": normal(w[0])}), [normal(*x)])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 3),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    channels=st.sampled_from([(3, 20, 1), (8, 8, 1), (8, 12, 4), (6, 6, 6), (33, 33, 33), (16, 50, 1)]),
)
def test_any_window_agrees(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, pads: tuple[int, ...], channels: tuple[int, int, int]
) -> None:
    c, out, group = channels
    conv((1, c, *size), (out, c // group, *kernel), stride, pads, 1, group)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_dilated(group: int) -> None:
    conv((2, 4, 15, 17), (8, 4 // group, 3, 3), 1, (2, 2, 2, 2), 2, group)


@pytest.mark.parametrize(("h", "w"), [(9, 9), (9, 30), (30, 41)])
@pytest.mark.parametrize("group", [1, 5])
def test_symbolic_image_sizes(h: int, w: int, group: int) -> None:
    conv((2, 5, h, w), (10 if group == 1 else 5, 5 // group, 3, 3), 2, (1, 1, 1, 1), 1, group, "n,5,h,w")


def test_one_axis_and_three_axes() -> None:
    check(
        parse("g (float[2,4,19] x) => (float[2,6,l] y) { y = Conv<pads=[2,1]>(x, w) }", {"w": normal(6, 4, 4)}),
        [normal(2, 4, 19)],
    )
    check(
        parse(
            "g (float[1,2,5,6,7] x) => (float[1,3,d,h,l] y) { y = Conv<pads=[1,1,1,1,1,1]>(x, w) }",
            {"w": normal(3, 2, 3, 3, 3)},
        ),
        [normal(1, 2, 5, 6, 7)],
    )


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("length", ["600", "l"])
def test_a_window_as_wide_as_a_frame_of_speech(length: str, group: int) -> None:
    """Padding is stored around it, and its taps are a loop: written out they took minutes to compile."""
    node = f"y = Conv<pads=[17,90], strides=[25], group={group}>(x, w)"
    text = f"g (float[1,4,{length}] x) => (float[1,24,k] y) {{ {node} }}"
    model = parse(text, {"w": normal(24, 4 // group, 100)})
    assert stores_padding(model, [normal(1, 4, 600)])
    check(model, [normal(1, 4, 600)])


def test_weights_computed_at_run_time() -> None:
    text = "g (float[1,4,9,9] x, float[6,2,3,3] w) => (float[1,6,7,7] y) { y = Conv<group=2>(x, w) }"
    check(parse(text), [normal(1, 4, 9, 9), normal(6, 2, 3, 3)])


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(mode: str) -> None:
    text = f'g (float[1,3,10,11] x) => (float[1,4,h,w] y) {{ y = Conv<auto_pad="{mode}", strides=[2,2]>(x, w) }}'
    check(parse(text, {"w": normal(4, 3, 3, 4)}), [normal(1, 3, 10, 11)])


def test_a_residual_is_added_on_the_tile() -> None:
    text = """g (float[1,20,14,14] x) => (float[1,20,14,14] y) {
        a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w) d = Add(c, x) y = Relu(d) }"""
    executable = check(parse(text, {"w": normal(20, 20, 3, 3) * 0.1}), [normal(1, 20, 14, 14)])
    names = [row.name for row in executable.profile([normal(1, 20, 14, 14)], 1, 1)]
    assert sum("conv" in name for name in names) == 2
    assert not [name for name in names if "add" in name and "conv" not in name]


PADDED = """g (float[2,8,13,14] x) => (float[n,c,oh,ow] y) {{
    p = Pad{mode}(x, pads, value) y = Conv<pads=[1,0,0,1], strides=[2,2], group={group}>(p, w, b) }}"""


def padded(
    pads: list[int], value: float = 0.0, mode: str = "", group: int = 1
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    weights = {"w": normal(8, 8 // group, 3, 3), "b": normal(8), "pads": np.array(pads), "value": np.float32(value)}
    model = parse(PADDED.format(mode=mode, group=group), {k: np.asarray(v) for k, v in weights.items()})
    return model, [normal(2, 8, 13, 14)]


def stores_padding(model: onnx.ModelProto, inputs: list[np.ndarray]) -> bool:
    return any("pad" in row.name for row in check(model, inputs).profile(inputs, 1, 1))


@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("pads", [[0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 0, 2, 0, 0, 3, 1]])
def test_a_pad_in_front_is_done_by_the_window(pads: list[int], group: int) -> None:
    assert not stores_padding(*padded(pads, group=group))


def test_a_pad_with_axes_is_done_by_the_window() -> None:
    weights = {"w": normal(8, 8, 3, 3), "pads": np.array([2, 1, 0, 1]), "axes": np.array([-1, 2])}
    text = "g (float[2,8,13,14] x) => (float[n,c,oh,ow] y) { p = Pad(x, pads, , axes) y = Conv(p, w) }"
    assert not stores_padding(parse(text, weights), [normal(2, 8, 13, 14)])


@pytest.mark.parametrize(
    ("pads", "value", "mode"),
    [
        ([0, 0, 1, 1, 0, 0, 1, 1], 1.5, ""),
        ([0, 0, 1, 1, 0, 0, 1, 1], 0.0, '<mode="edge">'),
        ([0, 0, -1, 1, 0, 0, 1, 1], 0.0, ""),
        ([1, 0, 1, 1, 0, 0, 1, 1], 0.0, ""),
    ],
)
def test_a_pad_of_another_kind_stays(pads: list[int], value: float, mode: str) -> None:
    model, inputs = padded(pads, value, mode)
    executable = check(model, inputs)
    assert len([row for row in executable.profile(inputs, 1, 1) if "pad" in row.name]) == 1


def test_padding_of_channels_stays() -> None:
    weights = {"w": normal(8, 10, 3, 3), "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0])}
    text = "g (float[2,8,13,14] x) => (float[n,c,oh,ow] y) { p = Pad(x, pads) y = Conv(p, w) }"
    assert stores_padding(parse(text, weights), [normal(2, 8, 13, 14)])


def test_amounts_computed_at_run_time_stay() -> None:
    weights = {"w": normal(8, 8, 3, 3)}
    text = "g (float[2,8,13,14] x, int64[8] pads) => (float[n,c,oh,ow] y) { p = Pad(x, pads) y = Conv(p, w) }"
    executable = compiled(parse(text, weights), fallback="onnxruntime")
    inputs = [normal(2, 8, 13, 14), np.array([0, 0, 1, 1, 0, 0, 1, 1])]
    (ours,), (theirs,) = executable.run(inputs, 1), oracle(parse(text, weights), inputs)
    assert distance(ours, theirs) <= 1e-5


def test_layout_changes_stay_at_the_ends() -> None:
    text = """g (float[1,16,14,14] x) => (float[1,16,7,7] y) {
        a = Conv<pads=[1,1,1,1]>(x, w) b = Clip(a, low, high) c = Conv<pads=[1,1,1,1], group=16>(b, d)
        e = Add(b, c) y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(e) }"""
    weights = {"w": normal(16, 16, 3, 3), "d": normal(16, 1, 3, 3), "low": np.float32(0), "high": np.float32(6)}
    executable = check(parse(text, {k: np.asarray(v) for k, v in weights.items()}), [normal(1, 16, 14, 14)])
    names = [row.name for row in executable.profile([normal(1, 16, 14, 14)], 1, 1)]
    assert sum("transpose" in name for name in names) <= 2


@given(
    out=st.integers(1, 60), tile=st.integers(1, 14), kw=st.integers(1, 7), sw=st.integers(1, 3), pw=st.integers(0, 3)
)
def test_runs_cover_every_pixel_once(out: int, tile: int, kw: int, sw: int, pw: int) -> None:
    width = max((out - 1) * sw + kw - 2 * pw, 1)
    taps = Taps(1, kw, 1, sw, 1, 1, 0, pw, pw)
    runs = edges(taps, out, width, tile)
    assert [p for start, count, _ in runs for p in range(start, start + count)] == list(range(out))
    for start, count, interior in runs:
        if interior:
            assert count % tile == 0
            assert all(taps.inside(p, t, width) for p in range(start, start + count) for t in range(kw))


@pytest.mark.parametrize(
    ("kernel", "attributes"),
    [
        (3, "pads=[1,1,1,1]"),
        (3, "pads=[1,0,1,2], strides=[2,2]"),
        (5, "pads=[2,3,2,1], strides=[1,2]"),
        (3, "pads=[2,2,2,2], dilations=[2,2]"),
        (3, "pads=[0,0,0,0]"),
        (3, "pads=[0,0,1,1], strides=[3,3]"),
        (7, "pads=[3,3,3,3], strides=[2,2]"),
        (7, "pads=[3,3,3,3]"),
        (1, "strides=[2,2]"),
    ],
)
@pytest.mark.parametrize("groups", [24, 1])
def test_symbolic_images_of_every_width(kernel: int, attributes: str, groups: int) -> None:
    text = f"g (float[1,24,h,w] x) => (float[n,c,oh,ow] y) {{ y = Conv<group={groups}, {attributes}>(x, f) }}"
    model = parse(text, {"f": normal(24, 24 // groups, kernel, kernel)})
    executable = compiled(model)
    for width in (*range(4, 18), 29, 33, 58):  # narrow ones, and tiles of each size
        x = normal(1, 24, 9, width)
        assert distance(executable.run([x], 2)[0], oracle(model, [x])[0]) <= 1e-5


@pytest.mark.parametrize(
    ("kernel", "attributes", "expected"),
    [
        (1, "strides=[1,1]", {"matmul"}),  # a row of a matrix a pixel
        (1, "strides=[2,2]", {"conv2d"}),
        (3, "strides=[2,2], pads=[1,1,1,1]", {"conv2d"}),
        (3, 'strides=[2,2], auto_pad="SAME_UPPER"', {"pad", "conv2d"}),  # pads that only the run knows
    ],
)
def test_symbolic_images_are_padded_in_the_kernel(kernel: int, attributes: str, expected: set[str]) -> None:
    text = f"g (float[1,24,h,w] x) => (float[n,c,oh,ow] y) {{ y = Conv<{attributes}>(x, f) }}"
    x = normal(1, 24, 9, 11)
    names = [row.name for row in check(parse(text, {"f": normal(24, 24, kernel, kernel)}), [x]).profile([x], 1, 1)]
    kernels = {name.rstrip("0123456789") for name in names if "transpose" not in name and "shape_func" not in name}
    assert kernels == expected
