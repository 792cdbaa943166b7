"""The cache of compiled models: the same call is answered from it, anything else is compiled, and it breaks nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import optimizer.cache.store
from optimizer import CompiledModel, Report, load, optimize
from optimizer.cache import open_store
from optimizer.cache.limit import parse_limit
from optimizer.cache.store import Store, Unusable, default_folder, default_limit
from optimizer.cli import main
from optimizer.errors import ArtifactError, InputError
from optimizer.verification import verify_executable
from tests.optimizer.build import perceptron, perceptron_output

X = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def quick(folder: Path | str | bool, model: object = None, **options: Any) -> CompiledModel:
    model = perceptron() if model is None else model
    return optimize(model, **{"target": "onnx", "progress": False, "cache": folder, **options})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def entry_of(folder: Path) -> Path:
    (entry,) = folder.iterdir()
    return entry


@pytest.mark.parametrize("target", ["onnx", "cpu"])
def test_the_same_call_again_is_answered_from_the_cache(folder: Path, target: str) -> None:
    first = quick(folder, target=target)
    again = quick(folder, target=target)
    assert first.report.cached is None
    assert again.report.cached is not None
    np.testing.assert_array_equal(again(X), first(X))
    np.testing.assert_allclose(again(X), perceptron_output(X), rtol=1e-4, atol=1e-4)
    assert len(files(folder)) == 1


def test_what_comes_from_the_cache_is_as_complete_as_what_was_compiled(folder: Path, tmp_path: Path) -> None:
    first, again = quick(folder), quick(folder)
    assert (again.inputs, again.outputs, again.target) == (first.inputs, first.outputs, first.target)
    assert again.num_threads == first.num_threads
    assert [node.name for node in again.graph.graph] == [node.name for node in first.graph.graph]
    assert again.diff().to_dict() == first.diff().to_dict()
    fresh, cached = first.report.to_dict(), again.report.to_dict()
    differing = {key for key in fresh if fresh[key] != cached[key]}
    assert differing == {"stages", "seconds", "cached"}
    again.save(tmp_path / "model.tersor")
    np.testing.assert_array_equal(load(tmp_path / "model.tersor")(X), first(X))


def test_the_report_says_that_it_is_from_the_cache(folder: Path, tmp_path: Path) -> None:
    fresh = quick(folder, seed=7).report
    report = quick(folder, seed=7).report
    assert report.cached is not None
    assert list(report.stages) == ["looking into the cache"]
    assert (report.cached.seed, report.cached.model) == (7, "test")
    assert report.cached.seconds == pytest.approx(fresh.seconds)
    assert "from the cache: compiled in" in str(report)
    assert "UTC with seed 7" in str(report)
    report.save(tmp_path / "report.html")
    assert "from the cache: compiled in" in (tmp_path / "report.html").read_text()
    assert Report.from_dict(json.loads(report.to_json())).cached == report.cached


def test_it_outlives_the_process(folder: Path, tmp_path: Path) -> None:
    onnx.save(perceptron(), tmp_path / "model.onnx")
    code = f"""
import sys
from optimizer import optimize
compiled = optimize({str(tmp_path / "model.onnx")!r}, "onnx", cache={str(folder)!r}, progress=False)
print(compiled.report.cached is not None)
"""
    said = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["False", "True"]


def test_a_hit_starts_no_process_and_reads_no_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(folder, target="cpu")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("this is what the cache saves")

    monkeypatch.setattr("optimizer.child_process.ChildProcess.start", forbidden)
    monkeypatch.setattr("optimizer.frontends.load_model", forbidden)
    assert quick(folder, target="cpu").report.cached is not None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"verify": "off"},
        {"fallback": "error"},
        {"passes": "remove-unused"},
        {"target": "cpu"},
        {"example_inputs": X},
        {"model": perceptron(hidden=48)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_call_is_compiled(folder: Path, change: dict[str, Any]) -> None:
    quick(folder)
    assert quick(folder, **change).report.cached is None
    assert len(files(folder)) == 2


def test_progress_makes_no_difference(folder: Path) -> None:
    quick(folder)
    assert quick(folder, progress=True).report.cached is not None


def test_each_pass_is_checked_whenever_that_is_asked_for(folder: Path) -> None:
    for _ in range(2):
        report = quick(folder, verify="each").report
        assert report.cached is None
        assert any(row.error is not None for row in report.passes)
    assert not folder.exists()


@pytest.mark.parametrize("part", ["the manifest", "native code", "the graph", "the end"])
def test_a_damaged_entry_is_compiled_again(folder: Path, part: str) -> None:
    first = quick(folder)
    entry = entry_of(folder)
    data = bytearray(entry.read_bytes())
    if part == "the end":
        del data[len(data) // 2 :]
    else:
        needle = {"the manifest": b'"num_threads"', "native code": b"backend/", "the graph": b"graph/model.onnx"}[part]
        data[data.index(needle) + (4 if part == "the manifest" else 600)] ^= 1
    entry.write_bytes(data)
    again = quick(folder)
    assert again.report.cached is None
    np.testing.assert_array_equal(again(X), first(X))
    assert quick(folder).report.cached is not None


def test_an_entry_under_the_name_of_another_is_not_taken(folder: Path) -> None:
    quick(folder, seed=1)
    entry = entry_of(folder)
    quick(folder, seed=2)
    (other,) = set(folder.iterdir()) - {entry}
    shutil.copyfile(other, entry)
    report = quick(folder, seed=1).report
    assert report.cached is None
    assert report.to_dict()["verification"]["error"] is not None


def test_a_file_that_changes_while_it_is_compiled_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(perceptron(), path)
    verify = verify_executable

    def meanwhile(*args: Any) -> Any:
        onnx.save(perceptron(hidden=48), tmp_path / "new.onnx")
        (tmp_path / "new.onnx").replace(path)
        return verify(*args)

    monkeypatch.setattr("optimizer.verification.verify_executable", meanwhile)
    assert "not kept in the cache: the file was changed meanwhile" in quick(folder, path).report.notes
    assert not folder.exists()


def test_several_processes_may_write_and_read_at_a_time(folder: Path, tmp_path: Path) -> None:
    onnx.save(perceptron(), tmp_path / "model.onnx")
    code = f"""
import numpy as np
from optimizer import optimize
x = np.ones((3, 32), np.float32)
for seed in (0, 1, 0, 1):
    optimize({str(tmp_path / "model.onnx")!r}, "onnx", cache={str(folder)!r}, progress=False, seed=seed)(x)
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert len(files(folder)) == 2
    for entry in folder.iterdir():
        np.testing.assert_allclose(load(entry)(X), perceptron_output(X), rtol=1e-4, atol=1e-4)


def test_the_longest_unused_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(folder, seed=0)
    size = entry_of(folder).stat().st_size
    monkeypatch.setenv("TERSOR_CACHE_SIZE", str(int(size * 2.5)))
    quick(folder, seed=1)
    for age, entry in enumerate(Store(folder).entries()):
        os.utime(entry.path, (time.time() - 100 + age,) * 2)
    assert quick(folder, seed=0).report.cached is not None  # it is used last now
    quick(folder, seed=2)
    assert len(files(folder)) == 2
    assert quick(folder, seed=0).report.cached is not None
    assert quick(folder, seed=1).report.cached is None


def test_what_is_larger_than_the_cache_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_CACHE_SIZE", "1kB")
    (note,) = quick(folder).report.notes
    assert note == "not kept in the cache: it is larger than the 1000 B that the cache may have"
    assert files(folder) == []


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    folder.mkdir()
    old, new = folder / ".a.tersor.1234.part", folder / ".b.tersor.1234.part"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200,) * 2)
    quick(folder)
    assert not old.exists()
    assert new.exists()


def test_no_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_CACHE", str(folder))
    for _ in range(2):
        assert quick(False).report.cached is None
    assert not folder.exists()
    quick(True)
    assert quick(True).report.cached is not None
    monkeypatch.setenv("TERSOR_CACHE", "off")
    assert quick(True).report.cached is None
    assert open_store() is None


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "tersor"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "tersor"
    monkeypatch.setenv("TERSOR_CACHE", str(tmp_path / "named"))
    store = open_store()
    assert store is not None
    assert store.folder == tmp_path / "named"
    monkeypatch.setattr(Path, "home", classmethod(_no_home))
    with pytest.raises(Unusable, match="there is no home directory"):
        default_folder()


def _no_home(_: type[Path]) -> Path:
    raise RuntimeError("no home")


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", classmethod(_no_home))
    assert quick(True).report.notes == ("not kept in the cache: there is no home directory",)


def test_others_cannot_read_it(folder: Path) -> None:
    quick(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert entry_of(folder).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("which", ["folder", "entry", "link"])
def test_what_others_may_write_is_not_loaded(folder: Path, tmp_path: Path, which: str) -> None:
    quick(folder)
    entry = entry_of(folder)
    if which == "link":
        entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(tmp_path / "elsewhere")
    else:
        (folder if which == "folder" else entry).chmod(0o777)
    report = quick(folder).report
    assert report.cached is None
    assert report.notes[0].startswith("not kept in the cache: others than you may write")


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    compiled = quick(tmp_path / "file" / "cache")
    assert compiled.report.notes[0].startswith("not kept in the cache: cannot use")
    np.testing.assert_allclose(compiled(X), perceptron_output(X), rtol=1e-4, atol=1e-4)


def test_a_full_disk_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise ArtifactError("cannot write 'x': No space left on device; nothing was written")

    monkeypatch.setattr(optimizer.cache.store, "save_artifact", full)
    (note,) = quick(folder).report.notes
    assert note == "not kept in the cache: cannot write 'x': No space left on device; nothing was written"


def test_a_quarter_of_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 6 * 2**30))
    assert default_limit(tmp_path, 2 * 2**30) == 2 * 2**30
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 2**40))
    assert default_limit(tmp_path, 0) == 10 * 2**30


@pytest.mark.parametrize("choice", [3, None, ""])
def test_a_choice_that_is_none(choice: Any) -> None:
    with pytest.raises(InputError, match="cache must be True, False or a folder, not"):
        quick(choice)


def test_sizes() -> None:
    assert [parse_limit(text, "x") for text in ("7", "20GB", "1.5 kB", "2MiB", "1tb")] == [
        7,
        20 * 10**9,
        1500,
        2 * 2**20,
        10**12,
    ]
    with pytest.raises(InputError, match="TERSOR_CACHE_SIZE must be a size such as '20GB', not 'much'"):
        parse_limit("much", "TERSOR_CACHE_SIZE")


def test_an_onnx_ir_model_and_a_proto_are_found_again(folder: Path) -> None:
    for model in (perceptron(), ir.from_proto(perceptron())):
        assert quick(folder, model).report.cached is None
        assert quick(folder, model).report.cached is not None


def command(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = main(arguments)
    out, err = capfd.readouterr()
    return code, json.loads(out) if "--json" in arguments and out else out, err


def test_the_command_uses_it_unless_told_not_to(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERSOR_CACHE", str(folder))
    onnx.save(perceptron(), tmp_path / "model.onnx")
    words = ["optimize", str(tmp_path / "model.onnx"), "--target", "onnx", "--quiet", "--json"]
    found = [command(capfd, *words, *more)[1]["cached"] for more in ([], [], ["--no-cache"])]
    assert (found[0], found[2]) == (None, None)
    assert found[1]["model"] == "model.onnx"
    assert len(files(folder)) == 1


def test_the_command_lists_and_clears_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERSOR_CACHE", str(folder))
    code, data, _ = command(capfd, "cache", "--json")
    assert (code, data["models"], data["bytes"]) == (0, 0, 0)
    assert "0 compiled models, 0 B, in " in command(capfd, "cache")[1]
    quick(folder)
    (folder / "damaged.tersor").write_text("x")
    _, data, _ = command(capfd, "cache", "list", "--json")
    assert (data["folder"], data["models"]) == (str(folder), 2)
    assert data["bytes"] == sum(entry["bytes"] for entry in data["entries"]) < data["limit"]
    assert {entry.get("model") for entry in data["entries"]} == {"test", None}
    shown = command(capfd, "cache")[1]
    assert "damaged" in shown
    assert "UTC" in shown
    assert "2 compiled models" in command(capfd, "cache", "size")[1]
    _, data, _ = command(capfd, "cache", "clear", "--json")
    assert data["removed"] == 2
    assert files(folder) == []


def test_the_command_without_a_cache(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = command(capfd, "cache")
    assert (code, err) == (2, "tersor: there is no cache: TERSOR_CACHE is off; name its folder with --folder\n")
    monkeypatch.setenv("TERSOR_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", classmethod(_no_home))
    code, _, err = command(capfd, "cache")
    assert (code, err) == (2, "tersor: there is no cache: there is no home directory; name its folder with --folder\n")


def test_the_command_with_a_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quick(folder)
    assert command(capfd, "cache", "clear", "--folder", str(folder))[1].startswith("removed 1 compiled model, ")


def test_a_cache_that_cannot_be_cleared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    quick(folder)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    code, _, err = command(capfd, "cache", "clear", "--folder", str(folder))
    assert (code, err.startswith("tersor: cannot clear")) == (1, True)
    assert "Permission denied" in err
