"""The benchmark of a large model, with a small one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.large_model import SECTION, anonymous_bytes, measure, watched
from models import phi
from optimizer.ort_session import OrtSession

SMALL = phi.Shape(layers=2, width=64, inner=128, heads=4, words=96)


def test_a_row(tmp_path: Path) -> None:
    path = tmp_path / "phi.onnx"
    phi.write(path, SMALL)
    before = sorted(tmp_path.iterdir())
    row = dict(zip(SECTION.columns, measure(path, SMALL, "float16", "gptq", 2, 8), strict=True))
    assert row["method"] == "gptq"
    assert 0.05 < float(row["peak memory, GB"]) < 2
    assert float(row["bound, GB"]) == 2.0
    assert float(row["processor seconds"]) > 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("dtype", phi.TYPES)
def test_the_model_runs_and_has_the_parameters_that_it_says(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "phi.onnx"
    phi.write(path, SMALL, dtype)
    weights = [value.const_value for value in ir.load(path).graph.initializers.values()]
    assert sum(weight.size for weight in weights if weight is not None) == SMALL.parameters
    (logits,) = OrtSession(path).run([np.array([[3, 1, 95]])])
    assert logits.shape == (1, 3, 96)
    assert np.isfinite(logits).all() and logits.std() > 0.1


def test_the_memory_is_what_a_process_fills() -> None:
    peak, seconds, spent = watched([sys.executable, "-c", "x = b'1' * 300_000_000; import time; time.sleep(0.3)"])
    assert 3.0e8 < peak < 3.3e8
    assert seconds > 0.3 and 0 < spent < 60
    assert anonymous_bytes(2**22 + 1) == 0
