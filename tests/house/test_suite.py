"""The benchmark suite's own parts: memory, and what it says of a model and of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import models
from benchmarks import contestants, machine, preparation, results, rows, suite
from benchmarks.contestants import OPENVINO, ORT, TERSOR, TORCH
from benchmarks.contests import BFLOAT16, FLOAT32
from benchmarks.export import export
from benchmarks.machine import Machine
from benchmarks.memory import PeakMemory, family, resident
from benchmarks.preparation import Compilation, Workload
from benchmarks.rows import COMPILING, Row
from models import ModelCase
from optimizer.timing import Measurement

SPEED = FLOAT32.speed
ALLOCATE = "import time; data = b'x' * 100_000_000; time.sleep(0.2); del data; time.sleep(0.2)"
PARENT = "import subprocess, sys; data = b'y' * 50_000_000; subprocess.run([sys.executable, '-c', {child!r}])"
ONES = np.ones(4, np.float32)


def measurement(*seconds: float, outputs: np.ndarray = ONES) -> Measurement:
    return Measurement([outputs], [[second] for second in seconds])


@pytest.fixture
def row() -> Row:
    measured = {
        ORT: measurement(0.001, 0.002, 0.003),
        OPENVINO: measurement(0.004, 0.004, 0.004, outputs=ONES * 1.0001),
        TERSOR: measurement(0.002, 0.002, 0.003, outputs=ONES * 1.001),
    }
    workload = Workload([np.zeros((2, 3), np.float32)], Path("x.onnx"), 90_000_000, 4_000_000, 1000, is_module=True)
    return Row("minilm", workload, Compilation(2.5, ["one"], 500_000_000), measured, {TORCH: "no C++ compiler"})


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


def test_a_row_says_what_compiling_took(row: Row) -> None:
    cells = dict(zip(COMPILING.columns, row.compiling_cells(), strict=True))
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


def test_a_row_says_how_fast_everyone_was_and_who_is_absent_for_what_reason(row: Row) -> None:
    cells = dict(zip(SPEED.columns, row.speed_cells(), strict=True))
    assert cells == {
        "model": "minilm",
        "ONNX Runtime ms": "2.00",
        "OpenVINO ms": "4.00",
        "torch.compile ms": "no C++ compiler",
        "tersor ms": "2.00",
        "over ONNX Runtime": "1.00",
        "over OpenVINO": "2.00",
        "over torch.compile": "",
        "over the best": "1.00 (0.75 to 1.00)",
        "largest error": "1e-03 tersor",
    }


def test_a_row_without_us_still_names_the_peers_and_our_failure(row: Row) -> None:
    peers = {name: each for name, each in row.measured.items() if name != TERSOR}
    failed = replace(row, compilation=None, measured=peers, absent={**row.absent, TERSOR: "optimize() failed"})
    speed = dict(zip(SPEED.columns, failed.speed_cells(), strict=True))
    assert (speed["tersor ms"], speed["OpenVINO ms"], speed["over the best"]) == ("optimize() failed", "4.00", "")
    compiling = dict(zip(COMPILING.columns, failed.compiling_cells(), strict=True))
    assert (compiling["ratio (quartiles)"], compiling["optimize() s"], compiling["limit MB"]) == ("", "", "1180")


def test_traffic_is_the_weights_the_inputs_and_the_outputs(row: Row) -> None:
    assert row.traffic == 1000 + 24 + 16


def test_the_best_is_never_torch_compile(row: Row) -> None:
    measured = {**row.measured, TORCH: measurement(0.0001)}
    assert replace(row, measured=measured).best == ORT
    assert replace(row, measured={TORCH: measured[TORCH], TERSOR: measured[TERSOR]}).best is None


def test_means_are_geometric_and_say_over_how_many_models(row: Row) -> None:
    faster = replace(row, measured={**row.measured, ORT: measurement(0.016, 0.016, 0.016)})
    text = rows.means([row, faster])
    assert "over the best of ONNX Runtime and OpenVINO: **1.41** (models: 2)." in text  # sqrt(1 * 2)
    assert "2.83 over ONNX Runtime (2), 2.00 over OpenVINO (2), none over torch.compile." in text  # sqrt(1 * 8)
    alone = replace(row, measured={ORT: row.measured[ORT]})
    assert rows.means([alone]) == "Nothing was compared."


def test_what_is_slower_than_a_peer_is_said_of_each_peer(row: Row) -> None:
    measured = {ORT: measurement(0.001), OPENVINO: measurement(0.008), TORCH: measurement(0.002)}
    behind = replace(row, measured={**measured, TERSOR: measurement(0.004)}, absent={})
    assert rows.slower([row, behind]) == [
        "minilm takes 4.00 times as long as ONNX Runtime and 2.00 times as long as torch.compile."
    ]


def test_what_computes_something_else_is_not_compared(row: Row) -> None:
    wrong = {"right": measurement(1.0, outputs=ONES * 1.009), "wrong": measurement(1.0, outputs=ONES * 1.02)}
    lost = {"lost": measurement(1.0, outputs=ONES * np.float32(np.nan))}
    measured = {**row.measured, **wrong, **lost}
    assert suite.differing(measured) == {"wrong": "differs by 2e-02", "lost": "differs by inf"}
    assert suite.differing({"wrong": measured["wrong"]}) == {}


def test_the_heading_says_how_it_was_measured() -> None:
    first, second = suite.heading("make bench", threads=2, rounds=3).splitlines()
    assert first.startswith("`make bench`, ")
    assert first.endswith(": 2 threads, 3 rounds;")
    assert f"{os.cpu_count()} cores" in second
    assert "onnxruntime " in second


def test_writing_fills_both_sections_and_draws(row: Row, tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    path.write_text(results.RESULTS.read_text(encoding="utf-8"), encoding="utf-8")
    slow = replace(row, measured={**row.measured, TERSOR: measurement(0.004, 0.004, 0.006)})
    suite.write("How.", [slow], Machine(1e12, 1e11, "ONNX Runtime", "a sum"), path)
    text = path.read_text(encoding="utf-8")
    speed = text.partition(SPEED.begin)[2].partition(SPEED.end)[0]
    assert speed.startswith("\nHow.\n\n| model |")
    for words in (
        "](speed.svg)",
        "](roofline.svg)",
        "1000 GFLOP/s",
        "* minilm takes 2.00 times as long as ONNX Runtime",
    ):
        assert words in speed
    assert "| minilm | 2.00 | 4.00 | 2.00 (2.00 to 3.00) |" in text.partition(COMPILING.begin)[2]
    assert (tmp_path / "speed.svg").read_text().startswith("<svg ")
    assert (tmp_path / "roofline.svg").read_text().startswith("<svg ")


def test_a_model_in_memory_is_exported_as_it_is(tmp_path: Path) -> None:
    model = machine.product(np.eye(3, dtype=np.float32))
    path = export(ModelCase("three", model, {"x": np.ones((3, 3), np.float32)}), tmp_path)
    assert onnx.load(path) == model


def test_a_workload_counts_operations_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ModelCase("product", machine.product(np.eye(8, dtype=np.float32)), {"x": np.ones((8, 8), np.float32)})
    monkeypatch.setattr("models.load", {"product": case}.get)
    workload, _ = preparation._export("product", tmp_path)
    assert (workload.flops, workload.weight_bytes, workload.is_module) == (2 * 8**3, 4 * 8**2, False)
    assert workload.onnx.is_file()
    assert [array.shape for array in workload.inputs] == [(8, 8)]


def test_the_suite_is_made_of_known_models() -> None:
    assert set(suite.MODELS) <= set(models.names())
    assert len(set(suite.MODELS)) == 15


@pytest.mark.slow
def test_every_contestant_computes_the_same() -> None:
    row = suite.measure("mobilenet-v2", threads=1, rounds=1)
    expected = {ORT, TERSOR, *(name for name in (OPENVINO, TORCH) if contestants.why_absent(name, True) is None)}
    assert set(row.measured) == expected, row.absent
    assert all(error < 1e-4 for name in expected if (error := row.error(name)) is not None)
    assert row.compilation is not None
    assert row.compilation.notes == []
    assert 0.5e9 < row.workload.flops < 0.8e9


# --- bfloat16 ---


@pytest.fixture
def narrow(row: Row) -> Row:
    return replace(row, contest=BFLOAT16, workload=replace(row.workload, bfloat16_bound=0.18))


def test_in_bfloat16_the_time_of_onnx_runtime_is_shown_and_not_compared(narrow: Row) -> None:
    assert dict(zip(BFLOAT16.speed.columns, narrow.speed_cells(), strict=True)) == {
        "model": "minilm",
        "ONNX Runtime float32 ms": "2.00",
        "OpenVINO ms": "4.00",
        "torch.compile ms": "no C++ compiler",
        "tersor ms": "2.00",
        "over OpenVINO": "2.00",
        "over torch.compile": "",
        "over the best": "2.00 (1.67 to 2.00)",
        "largest error": "1e-03 tersor",
        "bound": "0.18",
    }
    assert narrow.best == OPENVINO
    assert rows.means([narrow]) == (
        "Geometric mean of our speed over OpenVINO: **2.00** (models: 1).\n"
        "Over each alone: 2.00 over OpenVINO (1), none over torch.compile."
    )
    assert rows.slower([replace(narrow, measured={**narrow.measured, TERSOR: measurement(0.003, 0.003, 0.003)})]) == []


def test_a_result_in_bfloat16_is_held_against_its_bound(row: Row, narrow: Row) -> None:
    assert (row.bound, narrow.bound) == (1e-2, 0.18)
    measured = {**narrow.measured, "near": measurement(1.0, outputs=ONES * 1.1), "far": measurement(1.0, outputs=-ONES)}
    assert suite.differing(measured, narrow.bound) == {"far": "differs by 2e+00"}
    assert list(suite.differing(measured, row.bound)) == ["near", "far"]


def test_writing_in_bfloat16_leaves_the_rest(narrow: Row, tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    before = results.RESULTS.read_text(encoding="utf-8")
    path.write_text(before, encoding="utf-8")
    suite.write("How.", [narrow], None, path)
    head, _, rest = path.read_text(encoding="utf-8").partition(BFLOAT16.speed.begin)
    speed = rest.partition(BFLOAT16.speed.end)[0]
    assert head == before.partition(BFLOAT16.speed.begin)[0]
    assert "| minilm | 2.00 | 4.00 | no C++ compiler | 2.00 | 2.00 |" in speed
    assert "](speed-bfloat16.svg)" in speed
    assert "Roofline" not in speed
    assert {each.name for each in tmp_path.iterdir()} == {"RESULTS.md", "speed-bfloat16.svg"}
    drawn = (tmp_path / "speed-bfloat16.svg").read_text()
    assert "in bfloat16" in drawn
    assert "over ONNX Runtime" not in drawn


def test_the_bound_grows_with_the_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ModelCase("product", machine.product(np.eye(8, dtype=np.float32)), {"x": np.ones((8, 8), np.float32)})
    monkeypatch.setattr("models.load", {"product": case}.get)
    assert preparation._export("product", tmp_path)[0].bfloat16_bound == pytest.approx(1.6e-2)


@pytest.mark.slow
def test_every_contestant_computes_the_same_in_bfloat16() -> None:
    row = suite.measure("minilm", threads=1, rounds=1, contest=BFLOAT16)
    expected = {ORT, TERSOR, *(name for name in (OPENVINO, TORCH) if contestants.why_absent(name, True) is None)}
    assert set(row.measured) == expected, row.absent
    errors = {name: row.error(name) for name in expected - {ORT}}
    assert all(error is not None and 1e-4 < error < row.bound for error in errors.values()), errors
