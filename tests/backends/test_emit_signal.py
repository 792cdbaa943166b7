"""Transposed and deformed convolutions, Fourier transforms, windows, losses."""

import numpy as np
import pytest

from optimizer.errors import UnsupportedError
from tests.backends.emitted import agrees, emitted, normal
from tests.backends.running import check, compiled, parse


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("weight_is_constant", [True, False])
def test_transposed_convolution(groups: int, weight_is_constant: bool) -> None:
    weights = {"w": normal(4, 3, 3, 2), "b": normal(3 * groups)}
    given = "" if weight_is_constant else ", float[4,3,3,2] w"
    model = parse(
        f"g (float[2,4,4,5] x{given})"
        f" => (float[2,{3 * groups},8,10] y) {{ y = ConvTranspose<group={groups}, strides=[2,2],"
        " pads=[1,0,1,1], output_padding=[1,1], dilations=[1,2]>(x, w, b) }",
        weights if weight_is_constant else {"b": weights["b"]},
    )
    check(model, [normal(2, 4, 4, 5), *([] if weight_is_constant else [weights["w"]])])


@pytest.mark.parametrize("padding", ['auto_pad="SAME_LOWER"', 'auto_pad="SAME_UPPER"', "output_shape=[7,9]"])
def test_transposed_convolution_to_a_wanted_size(padding: str) -> None:
    size = "7,9" if "shape" in padding else "8,8"
    model = parse(
        f"g (float[1,2,4,4] x) => (float[1,3,{size}] y) {{ y = ConvTranspose<strides=[2,2], {padding}>(x, w) }}",
        {"w": normal(2, 3, 3, 3)},
    )
    check(model, [normal(1, 2, 4, 4)])


def test_transposed_convolution_of_symbolic_size_in_one_dimension() -> None:
    model = parse(
        "g (float[n,2,t] x) => (float[n,3,u] y) { y = ConvTranspose<strides=[4], pads=[2,2]>(x, w) }",
        {"w": normal(2, 3, 8)},
    )
    check(model, [normal(2, 2, 6)])


def test_transposed_convolution_of_symbolic_size_before_an_activation() -> None:
    """As in every U-Net: the sizes before the product's rows were put in one axis are passed to the kernel."""
    model = parse(
        "g (float[n,2,h,w] x) => (float[n,3,u,v] y)"
        " { a = ConvTranspose<strides=[2,2]>(x, k, b) r = Relu(a)"
        " c = ConvTranspose<strides=[2,2]>(r, m) y = Sigmoid(c) }",
        {"k": normal(2, 3, 2, 2), "b": normal(3), "m": normal(3, 3, 2, 2)},
    )
    check(model, [normal(2, 2, 6, 5)])


@pytest.mark.parametrize(
    "attributes", ["", ", output_padding=[1,0]", ", pads=[0,1,1,0]", ", dilations=[2,1]", ", group=2"]
)
@pytest.mark.parametrize("channels", [1, 20])
def test_a_kernel_as_large_as_the_stride(attributes: str, channels: int) -> None:
    """Without padding each output meets one element; with it, a few meet none or lie outside."""
    model = parse(
        f"g (float[n,4,5,w] x) => (float[n,c,u,v] y) {{ y = ConvTranspose<strides=[2,3]{attributes}>(x, k, b) }}",
        {"k": normal(4, channels, 2, 3), "b": normal(channels * (2 if "group" in attributes else 1))},
    )
    check(model, [normal(2, 4, 5, 7)])


def test_deformed_convolution_in_groups() -> None:
    text = (
        "g (float[2,4,5,5] x, float[2,36,3,3] o, float[2,18,3,3] m) => (float[2,6,3,3] y)"
        " { y = DeformConv<group=2, offset_group=2, strides=[2,2], pads=[1,1,1,1]>(x, w, o, b, m) }"
    )
    model = parse(text, {"w": normal(6, 2, 3, 3), "b": normal(6)}, opset=22)
    agrees(model, [normal(2, 4, 5, 5), normal(2, 36, 3, 3), normal(2, 18, 3, 3)], rtol=1e-4, atol=1e-4)


def test_blocks_overlap_in_an_image() -> None:
    model = parse(
        "g (float[2,12,6] x) => (float[2,2,4,5] y) { y = Col2Im<strides=[2,2], pads=[0,1,0,1]>(x, i, k) }",
        {"i": np.array([4, 5]), "k": np.array([2, 3])},
    )
    agrees(model, [normal(2, 12, 6)])


@pytest.mark.parametrize("length", [7, 8])
def test_a_transform_and_back(length: int) -> None:
    axis = {"a": np.array(1)}
    bins = length // 2 + 1
    there = parse(f"g (float[3,{length},1] x) => (float[3,{bins},2] y) {{ y = DFT<onesided=1>(x, , a) }}", axis)
    back = parse(
        f"g (float[3,{bins},2] x) => (float[3,{length},1] y) {{ y = DFT<onesided=1, inverse=1>(x, n, a) }}",
        axis | {"n": np.array(length)},
    )
    x = normal(3, length, 1)
    (spectrum,) = emitted(there, [x])
    exact = np.fft.rfft(x[..., 0])
    np.testing.assert_allclose(spectrum, np.stack([exact.real, exact.imag], -1), atol=1e-5)
    np.testing.assert_allclose(emitted(back, [spectrum])[0], x, atol=1e-6)


@pytest.mark.parametrize("length", [4, 9])
def test_a_transform_cuts_or_pads(length: int) -> None:
    model = parse(
        f"g (float[6,3,2] x) => (float[{length},3,2] y) {{ y = DFT(x, n, a) }}",
        {"n": np.array(length), "a": np.array(0)},
    )
    x = normal(6, 3, 2)
    exact = np.fft.fft(x[..., 0] + 1j * x[..., 1], length, axis=0)
    agrees(model, [x], [np.stack([exact.real, exact.imag], -1).astype(np.float32)], atol=1e-5)


def test_a_very_long_transform_is_refused() -> None:
    model = parse("g (float[65536,1] x) => (float[65536,2] y) { y = DFT(x, , a) }", {"a": np.array(0)})
    with pytest.raises(UnsupportedError, match="length 65536"):
        compiled(model)


def test_frames_of_a_signal_through_a_window() -> None:
    model = parse(
        "g (float[2,40,1] x) => (float[2,5,5,2] y) { w = HannWindow(n) y = STFT(x, s, w, n) }",
        {"n": np.array(8), "s": np.array(7)},
    )
    check(model, [normal(2, 40, 1)])


def test_frames_of_a_signal_without_an_axis_of_parts() -> None:
    model = parse(
        "g (float[b,t] x) => (float[b,f,5,2] y) { w = HannWindow(n) y = STFT(x, s, w, n) }",
        {"n": np.array(8), "s": np.array(7)},
    )
    check(model, [normal(2, 40)])


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(op: str, periodic: int) -> None:
    model = parse(
        f"g (float[9] x) => (float[9] y) {{ w = {op}<periodic={periodic}>(n) y = Mul(x, w) }}", {"n": np.array(9)}
    )
    agrees(model, [normal(9)], atol=1e-6)


def test_the_mel_scale() -> None:
    parameters = {
        "b": np.array(8),
        "n": np.array(64),
        "r": np.array(8192),
        "l": np.array(10, np.float32),
        "h": np.array(4000, np.float32),
    }
    model = parse(
        "g (float[33,8] x) => (float[33,8] y) { w = MelWeightMatrix(b, n, r, l, h) y = Add(x, w) }", parameters
    )
    agrees(model, [normal(33, 8)])


@pytest.mark.parametrize("op", ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignored_classes_count_for_nothing(op: str, reduction: str, weighted: bool) -> None:
    shape = "[4,3]" if reduction == "none" else ""
    given = ", w" if weighted else ""
    model = parse(
        f'g (float[4,5,3] x, int64[4,3] t) => (float{shape} y) {{ y = {op}<reduction="{reduction}", ignore_index=7>'
        f"(x, t{given}) }}",
        {"w": np.abs(normal(5))} if weighted else {},
    )
    targets = np.array([[0, 4, 7], [2, 2, 1], [7, 7, 7], [3, 0, 4]])
    agrees(model, [normal(4, 5, 3), targets])


def test_an_ignored_score_may_be_infinite() -> None:
    model = parse("g (float[2,3] x, int64[2] t) => (float y) { y = NegativeLogLikelihoodLoss<ignore_index=1>(x, t) }")
    x = np.array([[1, -np.inf, 2], [3, 4, 5]], np.float32)
    agrees(model, [x, np.array([1, 0])], [np.array(-3, np.float32)])


def test_the_logarithms_are_the_second_output() -> None:
    model = parse("g (float[4,5] x, int32[4] t) => (float y, float[4,5] l) { y, l = SoftmaxCrossEntropyLoss(x, t) }")
    agrees(model, [normal(4, 5), np.array([0, 1, 4, 2], np.int32)])
