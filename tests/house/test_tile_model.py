"""The tile model ranks kernels as the machine does, over shapes from microseconds to milliseconds."""

from __future__ import annotations

import pytest

from benchmarks import tile_model
from benchmarks.tile_model import CASES, Row, correlation, measure, summary

LEAST = 0.9
ATTEMPTS = 3
"""A machine that does something else meanwhile is given another chance: its best times of all rounds count."""


def ranked(cases: tuple[tile_model.Case, ...], rounds: int) -> float:
    """The rank correlation, each time the shortest so far."""
    best: dict[str, Row] = {}
    found = 0.0
    for _ in range(ATTEMPTS):
        for case in cases:
            row = measure(case, rounds=rounds)
            key = f"{case.kind} {case.shape}"
            if key not in best or row.kernel.seconds < best[key].kernel.seconds:
                best[key] = row
        found = correlation([(row.predicted, row.kernel.seconds) for row in best.values()])
        if found >= LEAST:
            break
    return found


KINDS = {"matmul", "conv2d", "winograd", "depthwise", "attention", "light"}


@pytest.mark.slow
def test_a_sweep_of_all_kinds() -> None:
    assert len(CASES) >= 30
    assert {case.kind for case in CASES} == KINDS
    assert ranked(CASES, rounds=6) >= LEAST


def test_a_short_sweep() -> None:
    cases = CASES[::3]
    assert {case.kind for case in cases} == KINDS
    assert ranked(cases, rounds=6) >= LEAST


def test_correlation_compares_orders() -> None:
    assert correlation([(1, 10), (2, 1000), (3, 1001)]) == pytest.approx(1)
    assert correlation([(3, 10), (2, 11), (1, 12)]) == pytest.approx(-1)
    assert correlation([(1, 1), (2, 3), (3, 2)]) == pytest.approx(0.5)


def test_a_row_shows_prediction_beside_measurement() -> None:
    row, other = measure(CASES[0], rounds=1), measure(CASES[4], rounds=1)
    kind, shape, predicted, measured, ratio, bound, reached = row.cells()
    assert (kind, shape) == ("matmul", "1 x 768 x 768")
    assert predicted.endswith("s")
    assert measured.endswith("s")
    assert float(ratio) > 0
    assert bound in ("arithmetic", "L2", "L3", "memory")
    assert reached.endswith("%")
    text = summary([row, other])
    assert "rank correlation of predicted and measured seconds over 2 kernels" in text
