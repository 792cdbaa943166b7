"""The table of CUDA kernels: its rows, of a small model."""

from __future__ import annotations

import pytest

from benchmarks import cuda_attention, cuda_kernels
from benchmarks.results import RESULTS
from models.registry import names
from tests.gpu.rules import nvidia


def test_the_section_is_in_the_results_and_the_models_are_known() -> None:
    text = RESULTS.read_text()
    assert text.count(cuda_kernels.SECTION.begin) == text.count(cuda_kernels.SECTION.end) == 1
    assert {name for name, _ in cuda_kernels.CASES} <= set(names())


def test_the_kernels_have_a_page_of_their_own() -> None:
    text = cuda_kernels.KERNELS_FILE.read_text()
    assert text.count(cuda_kernels.KERNELS.begin) == text.count(cuda_kernels.KERNELS.end) == 1
    assert RESULTS.read_text().count(cuda_attention.SECTION.begin) == 1


@pytest.mark.slow
def test_a_model_has_a_row_for_each_architecture() -> None:
    nvidia()
    rows = cuda_kernels.measure("minilm", "bfloat16")
    assert [row.architecture for row in rows] == ["sm_80", "sm_90"]
    assert rows[0].estimate is not None and rows[1].estimate is not None
    assert rows[1].estimate < rows[0].estimate  # an H100 is faster than an A100
    for row in rows:
        products = [each for each in row.kernels if each.kind == "matmul"]
        assert len(products) >= 4 and all(each.ours["tensor_cores"] for each in products)
        assert all(each.ours["spilled_bytes"] == 0 and each.ours["registers"] <= 255 for each in row.kernels)
        assert all(0.99 < (each.ratio("memory_bytes", each.ours) or 0) <= 1.3 for each in products)
        assert all(each.theirs is not None and not each.theirs["fails"] for each in products)
        assert len(row.cells()) == len(cuda_kernels.SECTION.columns)
    cells = cuda_kernels.kernel_cells(rows)
    assert {len(each) for each in cells} == {len(cuda_kernels.KERNELS.columns)}
    assert {each[0] for each in cells} == {"matmul", "attention"}


@pytest.mark.slow
def test_what_attention_moves_is_linear_in_length() -> None:
    nvidia()
    short, long = (cuda_attention.measure(length) for length in (256, 1024))
    moved = [row.ours["moved"]["memory_bytes"] for row in (short, long)]
    assert moved[1] == pytest.approx(4 * moved[0], rel=0.05)
