"""The benchmark suite's own parts: memory, and what it says of a model and of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import suite
from benchmarks.memory import PeakMemory, family, resident
from benchmarks.suite import Prepared, Row
from optimizer.timing import Measurement

ALLOCATE = "import time; data = b'x' * 100_000_000; time.sleep(0.2); del data; time.sleep(0.2)"
PARENT = "import subprocess, sys; data = b'y' * 50_000_000; subprocess.run([sys.executable, '-c', {child!r}])"


@pytest.fixture
def row() -> Row:
    theirs = Measurement([np.ones(4)], [[0.001], [0.002], [0.003]])
    ours = Measurement([np.ones(4) * 1.001], [[0.002], [0.002], [0.003]])
    return Row("minilm", theirs, ours, Prepared([], Path("x.onnx"), 2.5, 90_000_000, ["one"]), 500_000_000)


@pytest.mark.parametrize(("code", "least"), [(ALLOCATE, 100e6), (PARENT.format(child=ALLOCATE), 150e6)])
def test_peak_memory_counts_what_was_freed_again_and_what_a_child_had(code: str, least: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", code])
    watch = PeakMemory(process.pid)
    process.wait(20)
    assert least < watch.stop() < least + 60e6


def test_a_process_that_is_gone_has_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(20)
    time.sleep(0.01)
    assert family(process.pid) == [process.pid]
    assert resident(process.pid) == (0, 0)


def test_a_row_says_how_the_model_did(row: Row) -> None:
    cells = dict(zip(suite.COLUMNS, row.cells(), strict=True))
    assert cells == {
        "model": "minilm",
        "ONNX Runtime ms": "2.00",
        "tersor ms": "2.00",
        "ratio (quartiles)": "1.00 (1.00 to 1.50)",
        "relative error": "1.0e-03",
        "optimize() s": "2.5",
        "peak MB": "500",
        "limit MB": "1180",
        "fallback": "1",
    }


def test_the_heading_says_how_it_was_measured() -> None:
    first, second = suite.heading("make bench", threads=2, rounds=3).splitlines()
    assert first.startswith("`make bench`, ")
    assert first.endswith(": 2 threads, 3 rounds;")
    assert f"{os.cpu_count()} cores" in second
    assert "onnxruntime " in second
