"""The report says what was done, as text and as numbers."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from optimizer import Report, optimize
from optimizer.activation_memory import ActivationMemory
from optimizer.executable import KernelTime
from optimizer.forecast import Forecast
from optimizer.ir.figures import Costs
from optimizer.profile import Profile
from optimizer.report import PassRow, Verification
from optimizer.text import count, seconds, size
from tests.optimizer.build import perceptron

BEFORE = Costs(
    nodes=10, parameters=1_000_000, bytes=4_000_000, flops=2_000_000, peak_activation_bytes=4096, symbolic=False
)
AFTER = Costs(
    nodes=7, parameters=1_000_500, bytes=4_002_000, flops=2_000_000, peak_activation_bytes=2048, symbolic=True
)


@pytest.fixture
def report() -> Report:
    return Report(
        target="cpu",
        precision="float32",
        before=BEFORE,
        after=AFTER,
        passes=(
            PassRow("fold-constants", True, 0.002, BEFORE, AFTER, 3.1e-7),
            PassRow("remove-unused", False, 0.001, AFTER, AFTER),
        ),
        stages={"reading": 0.5, "compiling": 1.25},
        verification=Verification("each", 2e-6, 1e-4),
        notes=("2 nodes run in ONNX Runtime: no emitter for NonMaxSuppression",),
        versions={"onnx": "1.0"},
        memory=ActivationMemory(3 << 20, 4096, 2 << 20, 2, 3 << 20),
    )


def test_the_text_has_every_figure(report: Report) -> None:
    text = str(report)
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert all(figure in lines["the model as it came"] for figure in ("10", "1 M", "3.81 MiB", "2 M", "4 KiB"))
    assert all(figure in lines["fold-constants"] for figure in ("-3", "+500", "+1.95 KiB", "-2 KiB", "2 ms", "3.1e-07"))
    assert "1 ms" in lines["1 passes that found nothing"]
    assert all(figure in lines["total"] for figure in ("7", "≥ 2 M", "≥ 2 KiB", "1.75 s", "2.0e-06"))
    assert "note: 2 nodes run in ONNX Runtime: no emitter for NonMaxSuppression" in text
    assert "stages: reading 500 ms, compiling 1.25 s" in text
    assert "relative error 2.0e-06 (allowed: 1.0e-04)" in text
    assert "memory of a run: 5 MiB (arena 3 MiB, outputs 4 KiB, scratch 2 MiB on 2 threads)" in text
    assert "\x1b" not in text


def test_what_was_not_verified_says_so(report: Report) -> None:
    unverified = Report("cpu", "float32", BEFORE, AFTER, verification=Verification("final", reason="no inputs"))
    assert "not verified: no inputs" in str(unverified)


def test_the_numbers_survive_json(report: Report) -> None:
    data = json.loads(report.to_json())
    assert data["seconds"] == 1.75
    assert data["passes"][0]["after"]["nodes"] == 7
    assert data["memory"]["peak"] == (5 << 20) + 4096
    assert Report.from_dict(data) == report


def test_what_is_not_counted_is_said() -> None:
    assert str(ActivationMemory(1, 1, 1, 1, 1, complete=False)).endswith("; what ONNX Runtime takes is not counted)")


def test_memory_that_is_not_known_is_not_in_the_report() -> None:
    unknown = Report("onnx", "float32", BEFORE, AFTER)
    assert "memory of a run" not in str(unknown)
    assert Report.from_dict(json.loads(unknown.to_json())) == unknown


def test_a_profile_joins_the_report(report: Report) -> None:
    profile = Profile((KernelTime("matmul", ("a", "b"), 0.003, 2), KernelTime("softmax", (), 0.001, 1)))
    joined = report.with_profile(profile)
    assert "matmul" in str(joined)
    assert "75.0%" in str(joined)
    assert joined.to_dict()["profile"]["kernels"][0] == {
        "name": "matmul",
        "nodes": ["a", "b"],
        "calls": 2,
        "seconds": 0.003,
        "share": 0.75,
        "forecast": None,
        "reached": None,
    }
    assert Profile(()).share(profile.kernels[0]) == 0


def test_a_profile_shows_predictions_and_shares_of_what_bounds() -> None:
    fast = KernelTime("matmul", (), 0.004, 1, Forecast(0.003, 10, 20, "arithmetic", 0.001))
    slow = KernelTime("add", (), 0.001, 1, Forecast(0.002, 10, 20, "memory", 0.0005))
    profile = Profile((fast, slow))
    first, second = (next(line for line in str(profile).splitlines() if name in line) for name in ("matmul", "add"))
    assert "3 ms" in first
    assert "25% of peak" in first
    assert "50% of memory" in second
    assert profile.reached(fast) == 0.25
    row = profile.to_dict()["kernels"][1]  # type: ignore[index]
    assert row["forecast"]["bound"] == "memory"
    assert row["reached"] == 0.5


def test_rich_shows_the_same(report: Report) -> None:
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(report)
    assert "fold-constants" in console.export_text()


def test_a_real_report_is_complete() -> None:
    report = optimize(perceptron(), "onnx", verify="each", progress=False).report
    assert list(report.stages) == [
        "reading the model",
        "running the reference",
        "optimizing the graph",
        "compiling",
        "verifying",
    ]
    assert report.before.nodes == 4
    assert report.verification.mode == "each"
    assert report.verification.error is not None
    assert report.versions["onnxruntime"]
    for row in report.passes:
        assert row.seconds > 0
        assert (row.error is not None) == row.modified


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(999), "999"),
        (count(1000), "1 k"),
        (count(22_400_000), "22.4 M"),
        (count(10**19), "1e+04 P"),
        (size(1023), "1023 B"),
        (size(85.3 * 2**20), "85.3 MiB"),
        (count(999_999), "1000 k"),
        (size(1023.7), "1024 B"),
        (seconds(0.9996), "1 s"),
        (seconds(2), "2 s"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(4.5e-6), "4.5 µs"),
    ],
)
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected
