from __future__ import annotations

import pytest

from benchmarks.memory_budget import SECTION, measure
from benchmarks.results import RESULTS
from models import unet


@pytest.mark.slow
def test_a_small_network_at_half_of_its_memory() -> None:
    whole, half = measure(unet.build(4, 3, 64, "unet"), [0.5], threads=1, rounds=1)
    assert len(whole) == len(half) == len(SECTION.columns)
    assert float(half[2]) < float(whole[2])
    assert float(half[3]) < float(whole[3])
    assert float(half[8]) < 1e-5


def test_the_results_have_a_place_for_the_table() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert text.index(SECTION.begin) < text.index(SECTION.end)
