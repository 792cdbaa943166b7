"""Indices: negative ones, duplicates, ties."""

import numpy as np
import pytest

from tests.backends.emitted import agrees, emitted, normal
from tests.backends.running import parse


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_gather_with_known_and_with_computed_indices() -> None:
    model = parse(
        "g (float[4,5] x, int32[2,2] i) => (float[2,2,5] a, float[4,2,2] b, float[5] c, float[4,3] d)"
        " { a = Gather(x, i) b = Gather<axis=1>(x, i) c = Gather(x, last) d = Gather<axis=-1>(x, some) }",
        {"last": np.array(-1), "some": ints(0, -2, 3)},
    )
    agrees(model, [normal(4, 5), np.array([[0, -1], [3, -4]], np.int32)])


def test_gather_elements_and_gather_nd() -> None:
    model = parse(
        "g (float[3,4] x, int64[2,4] i, int64[2,2] n, int64[3,1] b) => (float[2,4] y, float[2] z, float[3] w)"
        " { y = GatherElements<axis=0>(x, i) z = GatherND(x, n) w = GatherND<batch_dims=1>(x, b) }"
    )
    i = np.array([[0, -1, 2, 1], [2, 2, -3, 0]])
    agrees(model, [normal(3, 4), i, np.array([[0, -1], [2, 3]]), np.array([[3], [-4], [1]])])


@pytest.mark.parametrize("reduction", ["add", "mul", "max", "min"])
def test_updates_of_one_element_add_up(reduction: str) -> None:
    model = parse(
        f"g (float[3,4] x, int64[5,4] i, float[5,4] u) => (float[3,4] y)"
        f' {{ y = ScatterElements<reduction="{reduction}">(x, i, u) }}'
    )
    indices = np.random.default_rng(3).integers(-3, 3, (5, 4))
    agrees(model, [normal(3, 4), indices, normal(5, 4)])


def test_scatter_nd_writes_slices_and_keeps_nan() -> None:
    model = parse(
        "g (float[4,3] x, int64[2,1] i, float[2,3] u) => (float[4,3] y, float[4,3] z) { y = ScatterND(x, i, u)"
        ' z = ScatterND<reduction="max">(x, i, u) }'
    )
    x, u = normal(4, 3), normal(2, 3)
    x[1, 0] = u[1, 2] = np.nan
    y, z = emitted(model, [x, np.array([[1], [-1]]), u])
    wanted, largest = x.copy(), x.copy()
    wanted[[1, 3]] = u
    largest[[1, 3]] = np.maximum(x[[1, 3]], u)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(z, largest)


def test_one_hot_is_off_everywhere_for_a_foreign_index() -> None:
    model = parse(
        "g (int64[4] i) => (float[4,3] y, float[3,4] z) { y = OneHot(i, d, v) z = OneHot<axis=0>(i, d, v) }",
        {"d": np.array(3), "v": np.array([-1, 2], np.float32)},
    )
    y, z = emitted(model, [ints(0, -1, 3, -4)])
    assert y.tolist() == [[2, -1, -1], [-1, -1, 2], [-1, -1, -1], [-1, -1, -1]]
    assert np.array_equal(z, y.T)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_puts_the_first_of_equal_ones_first(largest: int) -> None:
    model = parse(
        f"g (float[2,9,3] x) => (float[2,4,3] v, int64[2,4,3] i) {{ v, i = TopK<axis=1, largest={largest}>(x, k) }}",
        {"k": ints(4)},
    )
    x = np.random.default_rng(5).integers(0, 4, (2, 9, 3)).astype(np.float32)
    order = np.argsort(-x if largest else x, axis=1, kind="stable")[:, :4]
    agrees(model, [x], [np.take_along_axis(x, order, 1), order])


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_arg_extrema_of_ties_nan_and_infinity(op: str) -> None:
    x = np.array([[1, 3, 3, 0, 0], [np.nan, 5, np.nan, 0, 1], [-np.inf] * 5, [np.inf] * 5], np.float32)
    model = parse(
        f"g (float[4,5] x) => (int64[4,1] f, int64[4] l)"
        f" {{ f = {op}<axis=1>(x) l = {op}<axis=-1, keepdims=0, select_last_index=1>(x) }}"
    )
    choose = getattr(np, op.lower())
    first = choose(x, 1)[:, None]
    agrees(model, [x], [first, 4 - choose(x[:, ::-1], 1)])


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_running_sums(exclusive: int, reverse: int) -> None:
    model = parse(
        f"g (float[3,4] x) => (float[3,4] r, float[3,4] c)"
        f" {{ r = CumSum<exclusive={exclusive}, reverse={reverse}>(x, one)"
        f" c = CumSum<exclusive={exclusive}, reverse={reverse}>(x, zero) }}",
        {"one": np.array(1), "zero": np.array(0)},
    )
    agrees(model, [normal(3, 4)])


def test_triangles_with_a_known_and_a_computed_diagonal() -> None:
    model = parse(
        "g (float[2,3,4] x, int64 k) => (float[2,3,4] u, float[2,3,4] l)"
        " { u = Trilu(x, one) l = Trilu<upper=0>(x, k) }",
        {"one": np.array(1)},
    )
    agrees(model, [normal(2, 3, 4), np.array(-1)])


def test_a_cache_is_written_around_its_end() -> None:
    model = parse(
        "g (float[2,5,3] c, float[2,2,3] u, int64[2] w) => (float[2,5,3] y)"
        ' { y = TensorScatter<mode="circular">(c, u, w) }',
        opset=24,
    )
    cache, update = normal(2, 5, 3), normal(2, 2, 3)
    wanted = cache.copy()
    wanted[0, [4, 0]], wanted[1, [1, 2]] = update
    agrees(model, [cache, update, ints(4, 1)], [wanted])


def test_sequences_are_reversed_up_to_their_length() -> None:
    model = parse(
        "g (float[4,3] x, int64[3] n) => (float[4,3] y) { y = ReverseSequence<time_axis=0, batch_axis=1>(x, n) }"
    )
    agrees(model, [normal(4, 3), ints(1, 4, 2)])
