"""Reductions: no axes, empty sets, NaN, overflow, integers."""

import numpy as np
import pytest

from tests.backends.emitted import agrees, emitted, normal
from tests.backends.running import parse


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("op", ["Sum", "Mean", "Prod", "Max", "Min", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"])
def test_axes_from_an_input_with_and_without_them(op: str) -> None:
    model = parse(
        f"g (float[3,4,5] x) => (float[3,1,5] a, float[4] b, float[1,1,1] c)"
        f" {{ a = Reduce{op}(x, one) b = Reduce{op}<keepdims=0>(x, ends) c = Reduce{op}(x) }}",
        {"one": ints(1), "ends": ints(-1, 0)},
    )
    agrees(model, [np.abs(normal(3, 4, 5)) + 0.1], rtol=2e-5)


def test_no_axes_can_mean_none() -> None:
    model = parse(
        "g (float[2,3] x) => (float[2,3] a, float[2,3] b, float[1,1] c)"
        " { a = ReduceSum<noop_with_empty_axes=1>(x, none) b = ReduceMax<noop_with_empty_axes=1>(x)"
        " c = ReduceSum(x, none) }",
        {"none": ints()},
    )
    agrees(model, [normal(2, 3)])


@pytest.mark.parametrize(
    ("op", "neutral"), [("Sum", 0), ("Prod", 1), ("Max", -np.inf), ("Min", np.inf), ("L2", 0), ("LogSumExp", -np.inf)]
)
def test_an_empty_set_gives_the_neutral_element(op: str, neutral: float) -> None:
    model = parse(f"g (float[2,0,3] x) => (float[2,3] y) {{ y = Reduce{op}<keepdims=0>(x, a) }}", {"a": ints(1)})
    agrees(model, [np.zeros((2, 0, 3), np.float32)], [np.full((2, 3), neutral, np.float32)])


@pytest.mark.parametrize("length", [5, 16, 70, 300])
def test_nan_is_the_largest_and_the_smallest(length: int) -> None:
    x = normal(6, length)
    x[0, 0] = x[1, length // 2] = x[2, -1] = np.nan
    x[3, 1], x[3, 2], x[4] = np.inf, -np.inf, -np.inf
    model = parse(
        f"g (float[6,{length}] x) => (float[6,1] a, float[6,1] b) {{ a = ReduceMax(x, k) b = ReduceMin(x, k) }}",
        {"k": ints(-1)},
    )
    agrees(model, [x], [x.max(1, keepdims=True), x.min(1, keepdims=True)])


def test_log_sum_exp_neither_overflows_nor_loses_infinity() -> None:
    x = np.array([[1000, 999, -1000], [-np.inf, -np.inf, -np.inf], [np.inf, 0, 1], [np.nan, 0, 0]], np.float32)
    model = parse("g (float[4,3] x) => (float[4] y) { y = ReduceLogSumExp<keepdims=0>(x, a) }", {"a": ints(1)})
    wanted = np.array([1000 + np.log1p(np.exp(-1.0)), -np.inf, np.inf, np.nan], np.float32)
    agrees(model, [x], [wanted])


def test_integers_stay_integers_and_means_truncate() -> None:
    model = parse(
        "g (int32[2,3] x) => (int32[2] s, int32[2] m, int32[2] p, int32[2] n)"
        " { s = ReduceSum<keepdims=0>(x, a) m = ReduceMax<keepdims=0>(x, a) p = ReduceProd<keepdims=0>(x, a)"
        " n = ReduceMean<keepdims=0>(x, a) }",
        {"a": ints(1)},
    )
    x = np.array([[1, -5, 3], [7, 8, 9]], np.int32)
    wanted = [x.sum(1), x.max(1), x.prod(1), np.array([0, 8])]
    assert [v.tolist() for v in emitted(model, [x])] == [w.tolist() for w in wanted]


def test_booleans_have_a_largest() -> None:
    model = parse(
        "g (bool[3,2] x) => (bool[3] a, bool[3] b) { a = ReduceMax<keepdims=0>(x, k) b = ReduceMin<keepdims=0>(x, k) }",
        {"k": ints(1)},
    )
    x = np.array([[1, 0], [0, 0], [1, 1]], bool)
    agrees(model, [x], [np.asarray(x.any(1)), np.asarray(x.all(1))])


def test_float16_is_summed_in_float32() -> None:
    model = parse("g (float16[1,5000] x) => (float16[1,1] y) { y = ReduceSum(x, a) }", {"a": ints(1)})
    x = np.full((1, 5000), 1.0009765625, np.float16)
    agrees(model, [x], [x.astype(np.float32).sum(1, keepdims=True).astype(np.float16)], rtol=1e-3)


@pytest.mark.parametrize("rows", [1, 33])
def test_symbolic_sizes(rows: int) -> None:
    model = parse(
        "g (float[n,7] x) => (float[7] a, float[n] b)"
        " { a = ReduceMean<keepdims=0>(x, z) b = ReduceSum<keepdims=0>(x, o) }",
        {"z": ints(0), "o": ints(1)},
    )
    agrees(model, [normal(rows, 7)])
