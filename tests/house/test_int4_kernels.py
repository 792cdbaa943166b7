"""The benchmark of 4-bit weights: its contestants compute the same, and a row has what its columns say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from benchmarks import int4_kernels
from benchmarks.int4_kernels import CASES, SECTION, Case, measure
from optimizer.timing import Build, Measurement

SMALL = Case(16, 64, 32, 32)


def at_once(contestants: Mapping[str, Build], rounds: int) -> dict[str, Measurement]:
    """In this process, one call each."""
    return {
        name: Measurement([np.asarray(output) for output in build()()], [[1e-3 * (i + 1)]] * rounds)
        for i, (name, build) in enumerate(contestants.items())
    }


def test_contestants_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_kernels, "compete", at_once)
    row = dict(zip(SECTION.columns, measure(SMALL, 1), strict=False))
    cells = measure(SMALL, 1)
    assert len(cells) == len(SECTION.columns)
    assert cells[:4] == ["16", "64 x 32", "32", "1"]
    assert float(row["error"]) < 2e-6
    assert 1e-4 < float(row["error with int8"]) < 3e-2
    assert 1e-4 < float(row["error of ONNX Runtime"]) < 3e-2


@pytest.mark.parametrize("case", [case for case in CASES if case.rows < 16], ids=str)
def test_few_rows_meet_weights_that_no_cache_holds(case: Case) -> None:
    assert case.layers * case.weight_bytes >= 96_000_000
