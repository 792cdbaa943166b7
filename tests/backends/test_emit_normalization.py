"""Normalizations and softmax: extreme rows, every output, axes in the middle, data that lies channels-last."""

import numpy as np
import pytest

from tests.backends.emitted import agrees, emitted, normal
from tests.backends.running import check, parse


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_every_axis(op: str, axis: int) -> None:
    model = parse(f"g (float[3,5,7] x) => (float[3,5,7] y) {{ y = {op}<axis={axis}>(x) }}")
    agrees(model, [normal(3, 5, 7)])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_large_elements_do_not_overflow(op: str) -> None:
    model = parse(f"g (float[2,40] x) => (float[2,40] y) {{ y = {op}(x) }}")
    x = normal(2, 40) * 50 + np.array([[3000], [-3000]], np.float32)
    centred = x.astype(np.float64) - x.max(1, keepdims=True)
    wanted = centred - np.log(np.exp(centred).sum(1, keepdims=True))
    agrees(model, [x], [(np.exp(wanted) if op == "Softmax" else wanted).astype(np.float32)])


def test_a_row_of_minus_infinity_is_not_a_number() -> None:
    x = normal(2, 20)
    x[1] = -np.inf
    (y,) = emitted(parse("g (float[2,20] x) => (float[2,20] y) { y = Softmax(x) }"), [x])
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


def test_the_first_of_equal_elements_is_the_hard_maximum() -> None:
    x = np.array([[1, 3, 3, 2], [5, 5, 5, 5]], np.float32)
    wanted = np.array([[0, 1, 0, 0], [1, 0, 0, 0]], np.float32)
    agrees(parse("g (float[2,4] x) => (float[2,4] y) { y = Hardmax(x) }"), [x], [wanted])


def test_channels_softmax_after_a_convolution() -> None:
    model = parse(
        "g (float[2,3,4,5] x) => (float[2,6,4,5] y, float[2,6,4,5] z) { t = Conv(x, w) y = Softmax<axis=1>(t)"
        " z = Softmax<axis=-1>(t) }",
        {"w": normal(6, 3, 1, 1)},
    )
    check(model, [normal(2, 3, 4, 5)])


def test_half_precision_rows_are_summed_in_single() -> None:
    model = parse("g (float16[2,3000] x) => (float16[2,3000] y) { y = Softmax(x) }")
    x = normal(2, 3000, dtype="float16")
    powers = np.exp(x.astype(np.float64))
    agrees(model, [x], [(powers / powers.sum(1, keepdims=True)).astype(np.float16)], rtol=2e-3)


@pytest.mark.parametrize("axis", [1, -1])
def test_layer_normalization_gives_its_statistics(axis: int) -> None:
    scale = "[4,6]" if axis == 1 else "[6]"
    mean = "[3,1,1]" if axis == 1 else "[3,4,1]"
    model = parse(
        f"g (float[3,4,6] x, float{scale} s, float{scale} b) => (float[3,4,6] y, float{mean} m, float{mean} i)"
        f" {{ y, m, i = LayerNormalization<axis={axis}, epsilon=1e-3>(x, s, b) }}"
    )
    shape = (4, 6) if axis == 1 else (6,)
    agrees(model, [normal(3, 4, 6), normal(*shape), normal(*shape)])


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    model = parse("g (float[2,64] x, float[64] s) => (float[2,64] y) { y = LayerNormalization(x, s) }")
    x = normal(2, 64) + 20000
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    spacing = float(np.spacing(np.float32(20000)))  # of float32, in which the mean is rounded
    rounding = spacing / float(x.astype(np.float64).std(1).min())
    agrees(model, [x, np.ones(64, np.float32)], [exact.astype(np.float32)], rtol=1e-3, atol=rounding)


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_a_scale_of_one_element_and_symbolic_rows(op: str) -> None:
    model = parse(f"g (float[b,s,33] x, float[1] w) => (float[b,s,33] y) {{ y = {op}(x, w) }}")
    agrees(model, [normal(2, 3, 33), normal(1)])


def test_rms_normalization_of_several_axes() -> None:
    model = parse("g (float[3,4,6] x, float[4,6] w) => (float[3,4,6] y) { y = RMSNormalization<axis=1>(x, w) }")
    agrees(model, [normal(3, 4, 6), normal(4, 6)])


@pytest.mark.parametrize("scales", [2, 6])
def test_groups_are_scaled_by_group_or_by_channel(scales: int) -> None:
    opset = 23 if scales == 6 else 18
    model = parse(
        f"g (float[2,6,3,3] x, float[{scales}] s, float[{scales}] b) => (float[2,6,3,3] y)"
        " { y = GroupNormalization<num_groups=2>(x, s, b) }",
        opset=opset,
    )
    x, s, b = normal(2, 6, 3, 3), normal(scales), normal(scales)
    rows = x.reshape(2, 2, -1)
    y = ((rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)).reshape(x.shape)
    s_, b_ = (np.repeat(v, 6 // scales).reshape(1, 6, 1, 1) for v in (s, b))
    agrees(model, [x, s, b], [(y * s_ + b_).astype(np.float32)])


@pytest.mark.parametrize("op", ["InstanceNormalization", "BatchNormalization"])
@pytest.mark.parametrize("after_a_convolution", [False, True])
def test_by_channel_in_either_axis_order(op: str, after_a_convolution: bool) -> None:
    more = ", m, v" if op == "BatchNormalization" else ""
    first = "t = Conv(x, w)" if after_a_convolution else "t = Identity(x)"
    weights = {"s": normal(4), "b": normal(4), "m": normal(4), "v": np.abs(normal(4)), "w": normal(4, 4, 1, 1)}
    kept = {n: a for n, a in weights.items() if n in "sb" or (n in "mv" and more) or (n == "w" and after_a_convolution)}
    model = parse(f"g (float[2,4,5,3] x) => (float[2,4,5,3] y) {{ {first} y = {op}(t, s, b{more}) }}", kept)
    check(model, [normal(2, 4, 5, 3)])


def test_batch_normalization_in_training_moves_its_statistics() -> None:
    model = parse(
        "g (float[4,3,5] x, float[3] s, float[3] b, float[3] m, float[3] v)"
        " => (float[4,3,5] y, float[3] rm, float[3] rv)"
        " { y, rm, rv = BatchNormalization<training_mode=1, momentum=0.7>(x, s, b, m, v) }"
    )
    agrees(model, [normal(4, 3, 5), normal(3), normal(3), normal(3), np.abs(normal(3))])


@pytest.mark.parametrize("size", [3, 4])
def test_neighbouring_channels(size: int) -> None:
    model = parse(
        f"g (float[2,7,3,3] x) => (float[2,7,3,3] y) {{ y = LRN<size={size}, alpha=0.5, beta=0.6, bias=2.0>(x) }}"
    )
    x = normal(2, 7, 3, 3)
    padded = np.pad(x**2, ((0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)))
    squares = sum(padded[:, k : k + 7] for k in range(size))
    agrees(model, [x], [(x / (2 + 0.5 / size * squares) ** 0.6).astype(np.float32)])


@pytest.mark.parametrize("p", [1, 2])
def test_a_row_of_zeros_stays_zero(p: int) -> None:
    x = normal(3, 4)
    x[1] = 0
    norm = (np.abs(x) ** p).sum(1, keepdims=True) ** (1 / p)
    wanted = np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)
    agrees(parse(f"g (float[3,4] x) => (float[3,4] y) {{ y = LpNormalization<axis=1, p={p}>(x) }}"), [x], [wanted])


def test_mean_variance_normalization() -> None:
    model = parse("g (float[2,3,4,5] x) => (float[2,3,4,5] y) { y = MeanVarianceNormalization(x) }")
    x = normal(2, 3, 4, 5) * 3 + 1
    axes = (0, 2, 3)
    wanted = (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-9)
    agrees(model, [x], [wanted], atol=1e-5)
