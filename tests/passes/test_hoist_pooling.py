from __future__ import annotations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.testing import check_pass, models
from passes.hoist_pooling import HoistPooling
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read, reasons

WEIGHTS = "float[3,2,1,1] w = {1,2,3,4,5,6}, float[1,2,1,1] narrow = {2,3}, float[3] b = {1,-2,4}"
CONV = "c = Conv(x, w, b)"
POOL = "AveragePool<kernel_shape = [2,2], strides = [2,2]>"


def graph(nodes: str, outputs: str = "float[N,K,H,W] y") -> str:
    return f"g (float[2,2,6,6] x) => ({outputs}) <{WEIGHTS}> {{ {nodes} }}"


@pytest.mark.parametrize(
    "pool",
    [
        POOL,
        "AveragePool<kernel_shape = [3,3], strides = [2,1], pads = [1,1,1,1]>",
        "AveragePool<kernel_shape = [3,3], strides = [2,2], count_include_pad = 1>",
        'AveragePool<kernel_shape = [3,3], strides = [2,2], auto_pad = "SAME_UPPER">',
        "GlobalAveragePool",
    ],
)
def test_poolings(pool: str) -> None:
    assert_becomes(
        HoistPooling(), graph(f"{CONV} y = {pool}(c)"), graph(f"p = {pool}(x) y = Conv(p, w, b)")
    )  # fmt: skip


def test_wherever_it_stands() -> None:
    assert_becomes_everywhere(HoistPooling(), graph(f"{CONV} y = {POOL}(c)"), "AveragePool", "Conv")


def test_to_the_front_of_all() -> None:
    assert_becomes(
        HoistPooling(),
        graph(f"a = Conv<strides = [1,1], pads = [0,0,0,0]>(x, w) r = Conv(a, v) y = {POOL}(r)").replace(
            WEIGHTS, f"{WEIGHTS}, float[4,3,1,1] v = {{1,2,3,4,5,6,7,8,9,10,11,12}}"
        ),
        graph(f"p = {POOL}(x) a = Conv<strides = [1,1], pads = [0,0,0,0]>(p, w) y = Conv(a, v)").replace(
            WEIGHTS, f"{WEIGHTS}, float[4,3,1,1] v = {{1,2,3,4,5,6,7,8,9,10,11,12}}"
        ),
    )


def test_padding_without_a_bias_is_zero_all_the_same() -> None:
    pool = "AveragePool<kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1], count_include_pad = 1>"
    assert_becomes(HoistPooling(), graph(f"c = Conv(x, w) y = {pool}(c)"), graph(f"p = {pool}(x) y = Conv(p, w)"))


def test_padding_has_no_bias() -> None:
    pool = "AveragePool<kernel_shape = [3,3], strides = [2,2], pads = [1,1,1,1], count_include_pad = 1>"
    assert_stays(HoistPooling(), graph(f"{CONV} y = {pool}(c)"))
    assert reasons(HoistPooling(), graph(f"{CONV} y = {pool}(c)")) == ["the pooling counts padding, which has no bias"]


def test_a_size_that_is_rounded_up() -> None:
    text = graph(f"{CONV} y = AveragePool<kernel_shape = [2,2], strides = [2,2], ceil_mode = 1>(c)")
    assert_stays(HoistPooling(), text)
    assert reasons(HoistPooling(), text) == ["the pooling rounds its size up"]


def test_another_reader() -> None:
    text = graph(f"{CONV} y = {POOL}(c) z = Relu(c)", "float[N,K,H,W] y, float[N,K,J,L] z")
    assert_stays(HoistPooling(), text)
    assert reasons(HoistPooling(), text) == ["something else reads c, too"]
    assert_stays(HoistPooling(), graph(f"{CONV} y = {POOL}(c)", "float[N,K,H,W] y, float[N,K,J,L] c"))


def test_more_channels_to_average() -> None:
    text = graph(f"c = Conv(x, narrow) y = {POOL}(c)")
    assert_stays(HoistPooling(), text)
    assert reasons(HoistPooling(), text) == ["2 channels would be averaged in place of 1"]


@pytest.mark.parametrize(
    "nodes",
    [
        "c = Conv<pads = [1,1,1,1]>(x, w) y = AveragePool<kernel_shape = [2,2], strides = [2,2]>(c)",
        "c = Conv<strides = [2,2]>(x, w) y = AveragePool<kernel_shape = [2,2], strides = [2,2]>(c)",
        "c = Conv(x, w) y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(c)",
        "c = Conv(x, w) y = AveragePool<kernel_shape = [2,2]>(c)",
        "c = Conv(x, w) r = Relu(c) y = AveragePool<kernel_shape = [2,2], strides = [2,2]>(r)",
    ],
)
def test_what_does_not_commute_or_pay(nodes: str) -> None:
    assert_stays(HoistPooling(), graph(nodes))


def test_a_window_of_several_pixels() -> None:
    text = "g (float[2,1,6,6] x) => (float[N,K,H,W] y) <float[2,1,1,2] w = {1,2,3,4}> { c = Conv(x, w) y = " + POOL
    assert_stays(HoistPooling(), text + "(c) }")


@settings(max_examples=40, deadline=None)
@given(
    channels=st.sampled_from([(1, 1, 1), (2, 4, 1), (2, 4, 2), (4, 2, 1), (3, 6, 3)]),
    bias=st.booleans(),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padded=st.booleans(),
    counted=st.booleans(),
    size=st.tuples(st.integers(3, 8), st.integers(3, 8)),
    again=st.booleans(),
)
def test_property(
    channels: tuple[int, int, int],
    bias: bool,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padded: bool,
    counted: bool,
    size: tuple[int, int],
    again: bool,
) -> None:
    c, k, groups = channels
    weights = ", ".join(str(i - 2) for i in range(k * c // groups))
    constants = f"float[{k},{c // groups},1,1] w = {{{weights}}}, float[{k}] b = {{{', '.join(map(str, range(k)))}}}"
    pads = [edge // 2 if padded else 0 for edge in (*kernel, *kernel)]
    pool = (
        f"AveragePool<kernel_shape = {list(kernel)}, strides = {list(strides)}, pads = {pads},"
        f" count_include_pad = {int(counted)}>"
    )
    last = "GlobalAveragePool(p)" if again else "Relu(p)"
    nodes = f"c = Conv<group = {groups}>(x, w{', b' if bias else ''}) p = {pool}(c) y = {last}"
    shape = f"2,{c},{size[0]},{size[1]}"
    check_pass(HoistPooling(), read(f"g (float[{shape}] x) => (float[N,K,H,W] y) <{constants}> {{ {nodes} }}"))


@settings(max_examples=25, deadline=None)
@given(models(families=("conv", "pool", "repeat", "if", "function")))
def test_any_graph(model: ir.Model) -> None:
    check_pass(HoistPooling(), model)
