"""The table of CUDA kernels: its rows, of a small model."""

from __future__ import annotations

import pytest

from benchmarks import cuda_kernels
from benchmarks.results import RESULTS
from models.registry import names
from tests.gpu.rules import nvidia


def test_the_section_is_in_the_results_and_the_models_are_known() -> None:
    text = RESULTS.read_text()
    assert text.count(cuda_kernels.SECTION.begin) == text.count(cuda_kernels.SECTION.end) == 1
    assert {name for name, _ in cuda_kernels.CASES} <= set(names())


@pytest.mark.slow
def test_a_model_has_a_row_for_each_architecture() -> None:
    nvidia()
    rows = list(cuda_kernels.measure("minilm", "bfloat16"))
    assert [row.architecture for row in rows] == ["sm_80", "sm_90"]
    assert all(row.products >= 4 and row.spilled_bytes == 0 and row.registers <= 255 for row in rows)
    assert rows[0].estimate is not None and rows[1].estimate is not None
    assert rows[1].estimate < rows[0].estimate  # an H100 is faster than an A100
    assert len(rows[0].cells()) == len(cuda_kernels.SECTION.columns)
