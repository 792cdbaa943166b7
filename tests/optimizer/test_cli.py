"""The `tersor` command: the results, the exit codes, one line for each error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from optimizer import load, optimize
from optimizer.cli import main
from tests.optimizer.build import perceptron


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(perceptron(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Terminal:
    """Runs the command and keeps what it printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = self.capfd.readouterr()
        return code, out, err

    def json(self, *arguments: str) -> Any:
        code, out, err = self(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)


@pytest.fixture
def tersor(capfd: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capfd)


def test_optimize_saves_and_shows_the_report(folder: Path, tersor: Terminal) -> None:
    code, out, err = tersor("optimize", "model.onnx", "-o", "model.tersor", "--target", "onnx")
    assert (code, err) == (0, "")
    assert "the model as it came" in out
    assert load(folder / "model.tersor").target == "onnx"


def test_optimize_takes_every_option(folder: Path, tersor: Terminal) -> None:
    options = ["--target", "onnx", "--precision", "float32", "--passes", "remove-unused", "--verify", "each"]
    report = tersor.json(
        "optimize", "model.onnx", *options, "--fallback", "error", "--seed", "3", "--quiet", "-o", "slim.onnx"
    )
    assert [row["name"] for row in report["passes"]] == ["remove-unused"]
    assert report["verification"]["mode"] == "each"
    assert len(onnx.load(folder / "slim.onnx").graph.node) == 4


def test_inspect_an_onnx_model(folder: Path, tersor: Terminal) -> None:
    facts = tersor.json("inspect", "model.onnx")
    assert facts["inputs"] == ["x: float32[batch, 32]"]
    assert facts["operators"] == {"MatMul": 2, "Add": 1, "Relu": 1}
    assert facts["costs"]["parameters"] == 32 * 64 + 64 + 64 * 8
    code, out, _ = tersor("inspect", "model.onnx")
    assert code == 0
    assert "input x: float32[batch, 32]" in out
    assert "4 nodes, 2.62 k parameters in 10.2 KiB" in out


def test_diff_of_two_models(folder: Path, tersor: Terminal) -> None:
    onnx.save(perceptron(hidden=128), folder / "other.onnx")
    code, out, err = tersor("diff", "model.onnx", "other.onnx", "--html", "diff.html")
    assert (code, err) == (0, "")
    assert "w1: float32[32, 64] -> float32[32, 128]" in out
    assert (folder / "diff.html").read_text().startswith("<!DOCTYPE html>")
    assert tersor.json("diff", "model.onnx", "model.onnx")["identical"]


def test_diff_of_a_saved_model_and_its_original(folder: Path, tersor: Terminal) -> None:
    optimize(folder / "model.onnx", "onnx", progress=False).save(folder / "model.tersor")
    assert tersor.json("diff", "model.tersor")["before"]["title"] == "original"
    code, _, err = tersor("diff", "model.onnx")
    assert (code, "name a second model" in err) == (2, True)
    code, _, err = tersor("diff", "model.onnx", "model.tersor", "--html", "diff.txt")
    assert (code, "--html must name an .html file" in err) == (2, True)
    assert tersor("diff", "model.onnx", "missing.onnx")[0] == 1


def test_inspect_a_saved_model(folder: Path, tersor: Terminal) -> None:
    optimize(folder / "model.onnx", "onnx", progress=False).save(folder / "model.tersor")
    facts = tersor.json("inspect", "model.tersor")
    assert facts["target"] == "onnx"
    assert facts["outputs"] == ["y: float32[batch, 8]"]
    assert facts["report"]["verification"]["error"] is not None
    assert "backend/model.onnx" in facts["parts"]
    code, out, _ = tersor("inspect", "model.tersor")
    assert code == 0
    assert "target onnx, backend onnx" in out
    assert "the model as it came" in out


@pytest.mark.parametrize("saved", [False, True])
def test_bench_times_both(folder: Path, tersor: Terminal, saved: bool) -> None:
    name = "model.onnx"
    if saved:
        name = "model.tersor"
        optimize(folder / "model.onnx", "onnx", progress=False).save(folder / name)
    arguments = ["bench", name, "--rounds", "2", "--threads", "1", "--dim", "batch=5", "--target", "onnx"]
    result = tersor.json(*arguments)
    assert result["tersor_seconds"] > 0
    assert result["onnxruntime_seconds"] > 0
    low, high = result["ratio_quartiles"]
    assert 0 < low <= result["ratio"] <= high
    assert result["threads"] == 1


def test_passes_and_targets_are_listed(tersor: Terminal) -> None:
    names = [row["name"] for row in tersor.json("passes")]
    assert "fold-constants" in names
    assert names == sorted(names)
    assert "fold-constants" in tersor("passes")[1]
    targets = {row["name"]: row for row in tersor.json("targets")}
    assert set(targets) == {"cpu", "cuda", "onnx", "opencl"}
    assert targets["onnx"]["operators"] > 150
    assert "ONNX Runtime" in tersor("targets")[1]


def test_a_target_names_its_operators(tersor: Terminal) -> None:
    found = tersor.json("targets", "cuda")
    assert found["operators"] == len(found["operator_names"]) > 150
    assert {"MatMul", "Conv", "Attention"} <= set(found["operator_names"])
    assert "Attention" in tersor("targets", "cuda")[1]
    code, _, message = tersor("targets", "tpu")
    assert code == 2 and "tpu" in message


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["optimize", "missing.onnx"], 1, "cannot read the model 'missing.onnx': No such file or directory"),
        (["optimize", "broken.onnx"], 1, "broken.onnx"),
        (["optimize", "model.onnx", "--target", "gpu"], 2, "unknown target 'gpu'"),
        (["optimize", "model.onnx", "--precision", "float16"], 2, "precision 'float16' is not available"),
        (["optimize", "model.onnx", "--passes", "nothing"], 2, "no pass is called 'nothing'"),
        (["optimize", "model.onnx", "--verify", "maybe"], 2, "verify must be one of"),
        (["optimize", "model.onnx", "-o", "model.so"], 2, "--output must end in .tersor or .onnx, not 'model.so'"),
        (["optimize", "model.onnx", "--target", "onnx", "-o", "no/model.tersor"], 1, "cannot write 'no/model.tersor'"),
        (["inspect", "missing.tersor"], 1, "cannot read the model 'missing.tersor'"),
        (["inspect", "broken.tersor"], 1, "broken.tersor"),
        (["bench", "model.onnx", "--rounds", "0"], 2, "--rounds and --threads must be positive"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    folder: Path, tersor: Terminal, arguments: Sequence[str], code: int, message: str
) -> None:
    (folder / "broken.onnx").write_bytes(b"\x08\x07\xff")
    (folder / "broken.tersor").write_bytes(b"PK\x05\x06" + bytes(18))
    returned, out, err = tersor(*arguments)
    assert (returned, out) == (code, "")
    assert err.startswith("tersor: ")
    assert message in err
    assert err.count("\n") == 1
    assert {entry.name for entry in folder.iterdir()} == {"model.onnx", "broken.onnx", "broken.tersor"}


@pytest.mark.parametrize(
    "arguments",
    [[], ["optimise"], ["optimize"], ["optimize", "a", "--unknown"], ["bench", "a", "--dim", "batch"]],
    ids=range(5),
)
def test_bad_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: tersor" in capsys.readouterr().err


def test_an_interrupt_is_told_in_one_line(folder: Path, tersor: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("optimizer.frontends.load_model", interrupt)
    code, out, err = tersor("optimize", "model.onnx", "-o", "model.tersor", "--target", "onnx")
    assert (code, out, err) == (130, "", "tersor: interrupted; nothing was written\n")
    assert [entry.name for entry in folder.iterdir()] == ["model.onnx"]
