"""`tersor optimize` with limits, as continuous integration calls it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

import optimizer.bench
from optimizer.bench import BenchResult
from optimizer.cli import main
from optimizer.report import Verification
from optimizer.timing import Ratio
from tests.optimizer.build import perceptron

FIXED = ("--target", "onnx", "--passes", "remove-unused", "--quiet")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(perceptron(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Command:
    """`tersor optimize` with more options, on four nodes that stay four."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *options: str) -> tuple[int, str, str]:
        try:
            code = main(
                ["optimize", "model.onnx", "--target", "onnx", "--passes", "remove-unused", "--quiet", *options]
            )
        except SystemExit as error:  # What argparse does about a wrong option.
            code = int(error.code or 0)
        out, err = self.capfd.readouterr()
        return code, out, err


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(capfd)


def ratio_of(median: float) -> Any:
    def bench(*arguments: Any, **options: Any) -> BenchResult:
        del arguments
        assert options["threads"] >= 1
        return BenchResult(median, 1.0, Ratio(median, median, median), 2)

    return bench


def test_within_all_limits(folder: Path, command: Command) -> None:
    code, out, err = command("--max-error", "1e-3", "--max-nodes", "4", "-o", "model.tersor")
    assert (code, err) == (0, "")
    assert "4 nodes, within the limit of 4 (--max-nodes)" in out
    assert (folder / "model.tersor").exists()


def test_too_many_nodes(folder: Path, command: Command) -> None:
    code, out, err = command("--max-nodes", "3", "-o", "model.tersor", "--html", "report.html")
    assert code == 1
    assert err == "tersor: 4 nodes, over the limit of 3 (--max-nodes); model.tersor was not written\n"
    assert "the model as it came" in out, "the report is shown all the same"
    assert not (folder / "model.tersor").exists()
    assert (folder / "report.html").exists(), "the page says what was done"


def test_an_older_file_stays_when_a_check_fails(folder: Path, command: Command) -> None:
    (folder / "model.onnx2.onnx").write_bytes(b"older")
    assert command("--max-nodes", "3", "-o", "model.onnx2.onnx")[0] == 1
    assert (folder / "model.onnx2.onnx").read_bytes() == b"older"


def test_too_large_an_error(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    verified = Verification("final", 2e-5, 1e-4)
    monkeypatch.setattr("optimizer.verification.verify_executable", lambda *arguments: verified)
    assert command("--max-error", "2e-5")[0] == 0
    code, _, err = command("--max-error", "1e-5")
    assert code == 1
    assert "relative error 2e-05, over the limit of 1e-05 (--max-error)" in err


def test_an_error_that_is_not_known_fails(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimizer.errors import UnsupportedError

    def refuse(*arguments: Any, **options: Any) -> Any:
        del arguments, options
        raise UnsupportedError("no inputs can be made")

    monkeypatch.setattr("optimizer.verification.Oracle", refuse)
    code, _, err = command("--max-error", "1")
    assert code == 1
    assert "no relative error: no inputs can be made, not known to be within the limit of 1 (--max-error)" in err


def test_several_limits_are_all_named(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer.bench, "bench", ratio_of(1.3))
    code, _, err = command("--max-nodes", "1", "--fail-if-slower")
    assert code == 1
    assert err == (
        "tersor: 4 nodes, over the limit of 1 (--max-nodes); "
        "1.3 times ONNX Runtime's latency, over the limit of 1 (--fail-if-slower)\n"
    )


@pytest.mark.parametrize(("ratio", "code"), [(1.2, 0), (1.21, 1)])
def test_slower_by_a_ratio(
    folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch, ratio: float, code: int
) -> None:
    monkeypatch.setattr(optimizer.bench, "bench", ratio_of(ratio))
    assert command("--fail-if-slower", "1.2")[0] == code


def test_the_latency_is_measured(folder: Path, command: Command) -> None:
    code, out, _ = command("--fail-if-slower", "1000", "--json")
    assert code == 0
    (check,) = json.loads(out)["checks"]
    assert (check["name"], check["limit"], check["passed"]) == ("--fail-if-slower", 1000.0, True)
    assert 0 < check["value"] < 1000


def test_json_has_the_checks_when_one_fails(folder: Path, command: Command) -> None:
    code, out, _ = command("--max-nodes", "3", "--json")
    assert code == 1
    (check,) = json.loads(out)["checks"]
    assert (check["value"], check["limit"], check["passed"]) == (4, 3, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-error", "-1"], "must be a number of at least 0, not '-1'"),
        (["--max-error", "nan"], "must be a number of at least 0, not 'nan'"),
        (["--max-nodes", "1.5"], "must be a whole number of at least 0, not '1.5'"),
        (["--fail-if-slower", "0"], "must be a positive number, not '0'"),
        (["--max-error", "1", "--verify", "off"], "--max-error needs the error: leave out --verify off"),
        (["--html", "report.txt"], "--html must name an .html file, not 'report.txt'"),
    ],
)
def test_limits_that_make_no_sense(folder: Path, command: Command, options: list[str], message: str) -> None:
    code, _, err = command(*options)
    assert code == 2
    assert message in err
