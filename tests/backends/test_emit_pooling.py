"""Pools: padding never wins, rounding up never reads past the padding, types and symbolic sizes."""

import numpy as np
import pytest

from tests.backends.emitted import agrees, normal
from tests.backends.running import check, parse


def test_padding_never_is_the_largest() -> None:
    model = parse(
        "g (float[1,2,5,6] x)"
        " => (float[1,2,3,3] y) { y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }"
    )
    agrees(model, [-np.abs(normal(1, 2, 5, 6)) - 1])


@pytest.mark.parametrize("mode", ["MaxPool", "AveragePool"])
def test_a_window_that_would_start_in_the_padding_is_dropped(mode: str) -> None:
    model = parse(
        f"g (float[1,1,4,4] x)"
        f" => (float[1,1,2,2] y) {{ y = {mode}<kernel_shape=[1,1], strides=[2,2], ceil_mode=1>(x) }}"
    )
    check(model, [normal(1, 1, 4, 4)])


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("ceil", [0, 1])
def test_the_mean_counts_the_stated_padding_only(count: int, ceil: int) -> None:
    out = 4 if ceil else 3
    model = parse(
        f"g (float[2,3,6,6] x) => (float[2,3,{out},{out}] y) {{ y = AveragePool<kernel_shape=[3,3], strides=[2,2],"
        f" pads=[1,1,1,1], count_include_pad={count}, ceil_mode={ceil}>(x) }}"
    )
    check(model, [normal(2, 3, 6, 6)])


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(auto_pad: str) -> None:
    out = 3 if auto_pad == "VALID" else 4
    model = parse(
        f"g (float[1,2,7,7] x) => (float[1,2,{out},{out}] y) {{ y = AveragePool<kernel_shape=[2,2], strides=[2,2],"
        f' auto_pad="{auto_pad}">(x) }}'
    )
    check(model, [normal(1, 2, 7, 7)])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_one_to_three_spatial_axes_with_dilations(dims: int) -> None:
    sizes, outs = ",".join(["8"] * dims), ",".join(["4"] * dims)
    model = parse(
        f"g (float[1,2,{sizes}] x) => (float[1,2,{outs}] y) {{ y = MaxPool<kernel_shape={[3] * dims},"
        f" dilations={[2] * dims}>(x) }}"
    )
    agrees(model, [normal(1, 2, *[8] * dims)])


@pytest.mark.parametrize("column_major", [0, 1])
def test_indices_count_through_the_whole_tensor(column_major: int) -> None:
    model = parse(
        "g (float[2,2,5,4] x) => (float[2,2,3,2] y, int64[2,2,3,2] i) { y, i = MaxPool<kernel_shape=[2,2],"
        f" strides=[2,2], pads=[1,0,0,0], storage_order={column_major}>(x) }}"
    )
    check(model, [normal(2, 2, 5, 4)])


def test_small_integers() -> None:
    model = parse("g (int8[1,2,4,4] x) => (int8[1,2,4,4] y) { y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(x) }")
    check(model, [np.arange(-16, 16, dtype=np.int8).reshape(1, 2, 4, 4) - 100])


def test_symbolic_sizes() -> None:
    model = parse(
        "g (float[n,3,h,w] x) => (float[n,3,a,b] y) { y = AveragePool<kernel_shape=[3,2], strides=[2,1],"
        " pads=[1,0,1,1], ceil_mode=1>(x) }"
    )
    check(model, [normal(2, 3, 9, 5)])
    check(model, [normal(1, 3, 8, 4)])


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norms_of_windows_and_of_images(p: int) -> None:
    model = parse(
        f"g (float[1,2,6,6] x) => (float[1,2,3,3] y, float[1,2,1,1] z) {{ y = LpPool<kernel_shape=[2,2], strides=[2,2],"
        f" p={p}>(x) z = GlobalLpPool<p={p}>(x) }}"
    )
    x = normal(1, 2, 6, 6)
    blocks = np.abs(x.reshape(1, 2, 3, 2, 3, 2)) ** p
    wanted = [blocks.sum((3, 5)) ** (1 / p), (np.abs(x) ** p).sum((2, 3), keepdims=True) ** (1 / p)]
    agrees(model, [x], wanted)


def test_global_pools_between_convolutions() -> None:
    model = parse(
        "g (float[2,3,7,5] x) => (float[2,4,1,1] y, float[2,4,1,1] z) { t = Conv(x, w) y = GlobalAveragePool(t)"
        " z = GlobalMaxPool(t) }",
        {"w": normal(4, 3, 3, 3)},
    )
    check(model, [normal(2, 3, 7, 5)])


def test_half_precision_sums_do_not_overflow() -> None:
    model = parse("g (float16[1,1,8,8] x) => (float16[1,1,1,1] y) { y = AveragePool<kernel_shape=[8,8]>(x) }")
    agrees(model, [np.full((1, 1, 8, 8), 30000, np.float16)], [np.full((1, 1, 1, 1), 30000, np.float16)])


def test_unpooling_puts_elements_back() -> None:
    model = parse(
        "g (float[1,1,4,4] x) => (float[1,1,4,4] y) { v, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)"
        " y = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(v, i) }"
    )
    check(model, [normal(1, 1, 4, 4)])
