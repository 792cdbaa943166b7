from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from benchmarks.long_attention import SECTION, extra_megabytes, inputs, measure, model
from optimizer.timing import Outputs


def holding() -> Callable[[], Outputs]:
    """A contestant that needs 80 MB while it runs, and gives 8."""

    def call() -> Outputs:
        return [np.ones((10, 1_000_000))[0].copy()]

    return call


def test_the_model_is_valid_and_fits_its_inputs() -> None:
    onnx.checker.check_model(model(6), full_check=True)
    assert [list(array.shape) for array in inputs(6)] == [[1, 12, 6, 64]] * 3


def test_memory_beyond_the_outputs() -> None:
    assert 70 < extra_megabytes(holding) < 90


def test_all_agree_on_a_short_sequence() -> None:
    rows = measure(32, threads=1, rounds=1)
    assert [row[0] for row in rows] == ["tersor", "ONNX Runtime", "PyTorch"]
    assert all(len(row) == len(SECTION.columns) for row in rows)
    assert all(float(row[3]) < 1e-5 for row in rows[1:])
