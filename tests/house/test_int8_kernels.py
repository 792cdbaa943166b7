"""The benchmark of int8: its products, and what its rows say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.int8_kernels import PRODUCTS, SPEED, TAILS, Product, _cells, measure_product
from optimizer.timing import Measurement


def test_a_share_of_the_peak() -> None:
    product = Product((128, 768, 768), "float32", 1e-4, 2e12)
    assert product.speed == pytest.approx(2 * 128 * 768 * 768 / 1e-4)
    assert product.cells() == ["128 x 768 x 768", "float32", "100 µs", "1510", "75%"]
    assert len(product.cells()) == len(PRODUCTS.columns)


@pytest.mark.parametrize("tail", TAILS)
def test_a_small_product(tail: str) -> None:
    product = measure_product((4, 32, 48), tail, 1e12, threads=1, runs=2)
    assert 0 < product.seconds < 1
    assert product.tail == tail


def test_a_model_beside_its_peers() -> None:
    outputs = [np.ones(3, np.float32)]
    measured = {
        "tersor": Measurement(outputs, [[0.002], [0.002]]),
        "ONNX Runtime": Measurement(outputs, [[0.004], [0.004]]),
    }
    cells = dict(zip(SPEED.columns, ["m", *_cells(measured)], strict=True))
    assert (cells["tersor ms"], cells["ONNX Runtime ms"], cells["OpenVINO ms"]) == ("2.00", "4.00", "")
    assert cells["over ONNX Runtime"].startswith("2.00")
    assert cells["differs"] == "0e+00"
