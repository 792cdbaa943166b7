"""The benchmark of the models' products, and the peak beside which they stand."""

from __future__ import annotations

import pytest

from benchmarks.arithmetic_peak import arithmetic_peak
from benchmarks.matmul_peak import PRECISIONS, SECTION, Product, measure


def test_a_share_of_the_peak() -> None:
    product = Product((128, 768, 768), "float32", 4e-4, 500e9)
    assert product.share == pytest.approx(2 * 128 * 768 * 768 / 4e-4 / 500e9)
    assert product.cells() == ["128 x 768 x 768", "BERT, GPT-2", "float32", "400 µs", "377", "75%"]
    assert len(product.cells()) == len(SECTION.columns)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_small_product(precision: str) -> None:
    assert 0 < measure((4, 32, 48), precision, threads=1, runs=2) < 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_peak_is_that_of_a_processor(dtype: str) -> None:
    assert 1e9 < arithmetic_peak(dtype, 1) < 1e14


def test_a_peak_of_another_type_is_refused() -> None:
    with pytest.raises(KeyError, match="float64"):
        arithmetic_peak("float64", 1)
