"""Grids, histograms and calibrators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizer.reference import run_reference
from passes.quantization.calibrators import METHODS, calibrate, squared_error
from passes.quantization.grids import Kind, channel_scales, quantize_channels
from passes.quantization.histogram import BINS, Histogram
from tests.passes.transform import read

KINDS = [
    Kind(signed, symmetric, short) for signed in (False, True) for symmetric in (False, True) for short in (False, True)
]
FLOATS = st.floats(-1e4, 1e4, width=32)
NUMBERS = arrays(np.float32, st.integers(1, 50), elements=FLOATS)


def seen(*pieces: Any) -> Histogram:
    histogram = Histogram()
    for piece in pieces:
        histogram.add(np.asarray(piece, np.float32))
    return histogram


# --- Grids ---


@given(st.sampled_from(KINDS), FLOATS, FLOATS, NUMBERS)
def test_inside_the_range_the_error_is_half_a_step(kind: Kind, a: float, b: float, x: np.ndarray) -> None:
    grid = kind.over(min(a, b), max(a, b))
    inside = np.clip(x, grid.low, grid.high)
    rounded = grid.dequantize(grid.quantize(inside))
    # Division, multiplication and the scale round in float32: some units in the last place of the largest code.
    slack = 255 * grid.scale * 4 * np.finfo(np.float32).eps
    assert (np.abs(rounded - inside) <= grid.scale / 2 + slack).all()
    assert (grid.quantize(inside) >= kind.codes[0]).all() and (grid.quantize(inside) <= kind.codes[1]).all()


@given(st.sampled_from(KINDS), FLOATS, FLOATS)
def test_a_grid_reaches_over_its_range_and_has_zero(kind: Kind, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    grid = kind.over(low, high)
    assert grid.dequantize(grid.quantize(np.zeros(1, np.float32))) == 0
    # The zero point is a whole number: one end may be short by half a step.
    assert grid.low <= min(low, 0) + grid.scale * 0.501
    assert grid.high >= max(high, 0) - grid.scale * 0.501
    if kind.symmetric:
        assert grid.zero_point == kind.middle == (0 if kind.signed else (kind.codes[1] + 1) // 2)


def test_the_codes_of_each_kind() -> None:
    assert [kind.codes for kind in KINDS] == [
        (0, 255), (0, 127), (1, 255), (1, 127), (-128, 127), (-64, 63), (-127, 127), (-63, 63),
    ]  # fmt: skip


def test_onnx_rounds_in_the_same_way() -> None:
    grid = Kind(False, False).over(-1.5, 2.0)
    x = np.array([*np.linspace(-3, 3, 101), *(np.arange(-5, 5) + 0.5) * grid.scale], np.float32)
    model = read(
        f"""g (float[N] x) => (uint8[N] q, float[N] y)
        <float s = {{{grid.scale:.9g}}}, uint8 z = {{{grid.zero_point}}}> {{
            q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }}"""
    )
    codes, numbers = run_reference(model, [x])
    np.testing.assert_array_equal(grid.quantize(x), codes)
    np.testing.assert_array_equal(grid.dequantize(codes), numbers)


@given(arrays(np.float32, (3, 4), elements=FLOATS), st.sampled_from([None, 0, 1]), st.booleans())
def test_a_weight_is_off_by_half_a_step_of_its_channel(weight: np.ndarray, axis: int | None, signed: bool) -> None:
    kind = Kind(signed, True)
    scales = channel_scales(weight, axis, kind)
    assert scales.shape == (() if axis is None else (weight.shape[axis],)) and (scales > 0).all()
    codes = quantize_channels(weight, scales, axis, kind)
    assert codes.dtype == kind.dtype
    along = scales if axis is None else scales.reshape((-1, 1) if axis == 0 else (1, -1))
    rounded = (codes.astype(np.float64) - kind.middle) * along
    assert (np.abs(rounded - weight) <= along * (0.5 + 1e-4)).all()
    largest = np.abs(weight).max(axis=None if axis is None else 1 - axis)
    reached = np.abs(codes.astype(np.int64) - kind.middle).max(axis=None if axis is None else 1 - axis)
    # Below the smallest normal scale a channel is all zero.
    np.testing.assert_array_equal(reached[largest > 1e-30], 127)


# --- Histograms ---


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.randoms())
def test_the_order_of_the_pieces_does_not_matter(pieces: list[np.ndarray], random: Any) -> None:
    whole = seen(np.concatenate(pieces))
    random.shuffle(pieces)
    parts = seen(*pieces)
    assert (parts.low, parts.high, parts.reach) == (whole.low, whole.high, whole.reach)
    np.testing.assert_array_equal(parts.counts, whole.counts)


@given(NUMBERS)
def test_every_number_other_than_zero_is_counted_where_it_lies(x: np.ndarray) -> None:
    histogram = seen(x)
    assert histogram.total == np.count_nonzero(x)
    assert (histogram.low, histogram.high) == (x.min(), x.max())
    expected = np.histogram(x[x != 0].astype(np.float64), BINS, (-histogram.reach, histogram.reach))[0]
    np.testing.assert_array_equal(histogram.counts, expected)


def test_a_histogram_of_very_different_pieces() -> None:
    histogram = seen([1e-30], [1e30], [-3.0])
    assert histogram.total == 3
    assert histogram.reach >= 1e30
    assert histogram.counts[BINS // 2 - 1] == 1 and histogram.counts[BINS // 2] == 1


def test_nothing_was_seen() -> None:
    empty, zeros = seen(np.zeros((0, 3))), seen([0.0, 0.0])
    for histogram in (empty, zeros):
        for method in METHODS:
            assert calibrate(histogram, KINDS[0], method, 99.9) == (0, 0)
    assert KINDS[0].over(0, 0).scale == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        seen([1.0, bad])


# --- Calibrators ---


@settings(max_examples=30, deadline=None)
@given(NUMBERS, st.sampled_from(METHODS), st.sampled_from(KINDS))
def test_a_range_lies_within_what_was_seen(x: np.ndarray, method: str, kind: Kind) -> None:
    histogram = seen(x)
    low, high = calibrate(histogram, kind, method, 99.0)
    assert low <= high
    assert histogram.low <= low and high <= histogram.high
    if method == "minmax":
        assert (low, high) == (histogram.low, histogram.high)
    if method == "mse":
        best = squared_error(histogram, kind, (low, high))
        assert best <= squared_error(histogram, kind, (histogram.low, histogram.high))


def errors(x: np.ndarray, kind: Kind) -> dict[str, float]:
    found = {}
    for method in METHODS:
        grid = kind.over(*calibrate(seen(x), kind, method, 99.9))
        found[method] = float(np.mean((grid.dequantize(grid.quantize(x)) - x) ** 2))
    return found


@pytest.mark.parametrize("kind", [Kind(False, False), Kind(True, True)])
@pytest.mark.parametrize("name", ["normal", "laplace", "standard_t"])
def test_mse_has_the_smallest_error(kind: Kind, name: str) -> None:
    rng = np.random.default_rng(0)
    arguments = {"df": 4} if name == "standard_t" else {}
    x = getattr(rng, name)(size=50_000, **arguments).astype(np.float32)
    found = errors(x, kind)
    # The histogram knows numbers to 1/16 of a step only.
    assert found["mse"] <= 1.02 * min(found.values())
    assert found["mse"] < 0.98 * found["minmax"]


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_far_outlier_is_cut_off(method: str) -> None:
    x = np.append(np.random.default_rng(0).standard_normal(100_000), 300.0)
    low, high = calibrate(seen(x), Kind(False, False), method, 99.99)
    assert -5 < low < -3 and 3 < high < 6


def test_a_percentile_leaves_its_share_outside() -> None:
    x = np.random.default_rng(0).uniform(-1, 3, 100_000)
    for kind, ends in ((Kind(False, False), (-0.8, 2.8)), (Kind(True, True), (-1, 2.6))):
        np.testing.assert_allclose(calibrate(seen(x), kind, "percentile", 90), ends, atol=0.02)


def test_bytes_do_not_depend_on_the_run() -> None:
    x = np.random.default_rng(0).standard_normal(1000)
    first, second = (calibrate(seen(x), Kind(False, False), "mse", 99) for _ in range(2))
    assert first == second
    assert ir.tensor(np.array(first)).tobytes() == ir.tensor(np.array(second)).tobytes()
