"""`precision=PrecisionPolicy(...)` from end to end, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from optimizer import PrecisionPolicy, Report, load, optimize
from optimizer.cli import main
from optimizer.errors import InputError, PrecisionError
from optimizer.ir.weights import weight_bytes
from optimizer.policy_outcome import LayerChoice, PolicyOutcome, policy_table
from optimizer.precision import check_precision
from optimizer.precision_policy import FORMS, block_size
from optimizer.report_page import page_of
from optimizer.text import render
from tests.optimizer.build import perceptron

RNG = np.random.default_rng(0)
SETS = [{"x": RNG.standard_normal((6, 32)).astype(np.float32)} for _ in range(4)]


@pytest.mark.parametrize("target", ["cpu", "onnx"])
def test_it_compiles_the_mix_and_says_why(target: str, tmp_path: Path) -> None:
    policy = PrecisionPolicy(max_size="5KB", forms=("float32", "int8", "int4-16"), keep={"second": "float32"})
    compiled = optimize(perceptron(), target, precision=policy, calibration=SETS, progress=False, cache=False)
    report = compiled.report
    outcome = report.policy
    assert report.precision == "mixed, max_size=5KB" and outcome is not None
    assert [(row.node, row.form) for row in outcome.layers] == [("bias", "int8"), ("second", "float32")]
    assert outcome.size == weight_bytes(compiled.graph) <= 5000 < outcome.size_before
    assert 1e-3 < outcome.error < 0.03
    assert report.verification.loss == pytest.approx(outcome.error, rel=0.5)
    text = str(report)
    assert "precision policy, max_size=5KB: constants" in text and "kept by 'second'" in text
    assert "int4-16 would save" in text
    assert "Forms of layers, as the precision policy chose them" in page_of(report)
    assert Report.from_dict(report.to_dict()).policy == outcome
    compiled.save(tmp_path / "model.tersor")
    assert load(tmp_path / "model.tersor").report.policy == outcome


def test_it_is_found_in_the_cache_again(tmp_path: Path) -> None:
    def ask(**options: Any) -> Report:
        policy = PrecisionPolicy(max_error=0.02, **options)
        folder = tmp_path / "cache"
        return optimize(perceptron(), "onnx", precision=policy, calibration=SETS, progress=False, cache=folder).report

    first = ask()
    assert first.cached is None and ask().cached is not None and ask().policy == first.policy
    assert ask(keep={"first": "float32"}).cached is None


def test_it_needs_a_target_with_these_forms() -> None:
    with pytest.raises(PrecisionError, match="precision 'int4' is not available for target 'npu'"):
        check_precision(PrecisionPolicy(max_bits=5), "npu", ("float32", "int8"))
    check_precision(PrecisionPolicy(max_bits=5), "npu", ("float32", "int8", "int4"))
    with pytest.raises(InputError, match="needs calibration data"):
        optimize(perceptron(), "onnx", precision=PrecisionPolicy(max_bits=5), progress=False, cache=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one budget of max_size, max_bits, max_error, metric, and none is given"),
        ({"max_bits": 4, "max_error": 0.1}, "max_bits and max_error is given"),
        ({"max_size": "many"}, "max_size must be a size such as"),
        ({"max_size": 0}, "max_size must be a positive number of bytes"),
        ({"max_size": True}, "max_size must be a positive number of bytes"),
        ({"max_bits": 0}, "max_bits must be a positive number"),
        ({"max_error": "0.1"}, "max_error must be a positive number"),
        ({"metric": max}, "metric and max_loss go together"),
        ({"max_bits": 4, "max_loss": 0.1}, "metric and max_loss go together"),
        ({"metric": max, "max_loss": -1}, "max_loss must be a number of at least 0"),
        ({"metric": 3, "max_loss": 0}, "metric must be a function"),
        ({"max_bits": 4, "forms": ()}, "forms is empty"),
        ({"max_bits": 4, "forms": ("int5",)}, "unknown form 'int5'; known: float32, int8"),
        ({"max_bits": 4, "keep": {"x": "half"}}, "unknown form 'half'"),
    ],
    ids=str,
)
def test_what_a_policy_refuses(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PrecisionPolicy(**options)


def accuracy(run: Callable[..., Any]) -> float:
    return float(run(0))


def test_forms_and_budgets_in_words() -> None:
    assert [block_size(form) for form in FORMS] == [None, None, None, 16, 32, 64, 128, 256, 0]
    assert PrecisionPolicy(max_size="60MB").max_bytes == 60_000_000
    assert PrecisionPolicy(max_size=512).max_bytes == 512
    assert str(PrecisionPolicy(max_bits=4.5)) == "mixed, max_bits=4.5"
    assert str(PrecisionPolicy(metric=accuracy, max_loss=0.01)) == "mixed, max_loss=0.01 of accuracy"


def test_many_layers_are_cut_off() -> None:
    rows = tuple(LayerChoice(f"n{i}", "Gemm", "int8", "why", 10, 10, 40 + i, {"int8": 0.1}) for i in range(23))
    text = render(*policy_table(PolicyOutcome("b", 1, 2, 8, 0.1, 0.1, (0.5, 0.6), rows)))
    assert "n22" in text and "n2 " not in text and "and 3 more layers that are smaller" in text
    assert "metric 0.5 instead of 0.6" in text


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERSOR_CACHE", "off")
    onnx.save(perceptron(), "model.onnx")
    Path("sets").mkdir()
    for index, given in enumerate(SETS):
        np.savez(f"sets/{index}.npz", x=given["x"])
    return tmp_path


def command(*more: str) -> int:
    return main(["optimize", "model.onnx", "--target", "onnx", "--calibration", "sets", "--quiet", *more])


def test_the_command_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mixed = ("--precision", "mixed", "-o", "out.onnx")
    assert command(*mixed, "--max-bits", "6", "--keep", "first=int8", "--forms", "float32,int8,int4") == 0
    text = capsys.readouterr().out
    assert "precision mixed, max_bits=6.0" in text and "kept by 'first'" in text
    assert command(*mixed, "--max-error", "0.02", "--verify", "off") == 0
    assert "within the limit of 0.02 (--max-error)" in capsys.readouterr().out
    assert command(*mixed, "--max-size", "1KB") != 0
    assert "max_size=1KB cannot be met: the smallest that can be reached is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-size", "1MB"), "--max-size is for --precision mixed, not 'float32'"),
        (("--precision", "int8", "--keep", "a=int8"), "--keep is for --precision mixed, not 'int8'"),
        (("--precision", "mixed"), "needs one budget"),
        (("--precision", "mixed", "--max-bits", "5", "--keep", "first"), "--keep must be LAYER=FORM"),
    ],
)
def test_what_the_command_line_refuses(
    files: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert command(*options) != 0
    assert message in " ".join(capsys.readouterr().err.split())
