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


def test_rows_of_other_cases_stay() -> None:
    def row(*first: str) -> tuple[str, ...]:
        return (*first, *[""] * (len(cuda_kernels.SECTION.columns) - len(first)))

    held = [
        row("minilm", "int8", "sm_80", "old"),
        row("bert-base", "int8", "sm_90", "old"),
        row("gone", "int8", "sm_80"),
    ]
    new = [row("minilm", "int8", "sm_80", "new"), row("gpt2", "float32", "sm_80", "new")]
    merged = cuda_kernels.with_others(new, [list(each) for each in held])
    assert [each[0] for each in merged] == ["bert-base", "minilm", "gpt2"]
    assert [each[3] for each in merged] == ["old", "new", "new"]


def test_kernels_of_other_models_stay_with_all_that_use_them() -> None:
    held = [
        ["matmul", "8 x 4 x 2", "float16", "sm_80", "vit-b16", "a"],
        ["attention", "2", "float16", "sm_80", "gpt2", "b"],
    ]
    new = [
        ("matmul", "8 x 4 x 2", "float16", "sm_80", "minilm", "c"),
        ("matmul", "16 x 4 x 2", "float16", "sm_80", "minilm", "d"),
    ]
    merged = cuda_kernels.with_other_kernels(new, held)
    assert [each[4:] for each in merged] == [("minilm, vit-b16", "c"), ("minilm", "d"), ("gpt2", "b")]


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
