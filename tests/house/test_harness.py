"""The benchmark harness: right medians, in turn, and honest about contestants that fail."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from optimizer.timing import ContestantFailed, Measurement, Outputs, compete, ratio, relative_error


def sleeper(seconds: float) -> Callable[[], Outputs]:
    def call() -> Outputs:
        time.sleep(seconds)
        return [np.array([seconds, os.getpid()])]

    return call


def broken() -> Callable[[], Outputs]:
    raise ValueError("no such file")


def dying() -> Callable[[], Outputs]:
    os._exit(3)


def test_contestants_run_in_processes_of_their_own_and_their_ratio_is_right() -> None:
    result = compete({"slow": partial(sleeper, 0.02), "fast": partial(sleeper, 0.005)}, rounds=3)
    processes = {measurement.outputs[0][1] for measurement in result.values()}
    assert len(processes | {os.getpid()}) == 3
    assert all(len(measurement.bursts) == 3 for measurement in result.values())
    assert 0.02 <= result["slow"].seconds < 0.04
    assert 2 < ratio(result["slow"], result["fast"]).median < 4.5


def test_a_contestant_that_raises_is_named_with_its_words() -> None:
    with pytest.raises(ContestantFailed, match="peer failed: ValueError: no such file"):
        compete({"peer": broken})


def test_a_contestant_that_dies_is_named() -> None:
    with pytest.raises(ContestantFailed, match="peer died without a word"):
        compete({"peer": dying})


def test_a_ratio_is_taken_within_each_round() -> None:
    base = Measurement([], [[1.0], [2.0], [4.0]])
    twice = Measurement([], [[2.0], [4.0], [12.0]])
    assert str(ratio(twice, base)) == "2.00 (2.00 to 2.50)"
    assert twice.seconds == 4.0


def test_relative_error() -> None:
    expected = [np.array([3.0, 4.0])]
    assert relative_error(expected, expected) == 0
    assert relative_error([np.array([3.0, 4.5])], expected) == pytest.approx(0.1)
    assert relative_error([np.array([[3.0, 4.0]])], expected) == math.inf
    assert relative_error([np.array([np.nan, 4.0])], expected) == math.inf
    assert relative_error([], expected) == math.inf
    assert relative_error([np.array([0.5])], [np.zeros(1)]) == 0.5
