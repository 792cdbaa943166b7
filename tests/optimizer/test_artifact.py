"""A compiled model in one file: complete or absent, checked before it is used, loaded without compile-time parts."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer import CompiledModel, load, optimize
from optimizer.artifact import _write_part
from optimizer.artifact_reader import ArtifactReader
from optimizer.errors import ArtifactError
from optimizer.large_pages import LARGE_PAGE
from tests.optimizer.build import perceptron

X = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return optimize(perceptron(), "onnx", progress=False)


@pytest.fixture
def saved(compiled: CompiledModel, tmp_path: Path) -> Path:
    path = tmp_path / "model.tersor"
    compiled.save(path)
    return path


def test_a_saved_model_computes_the_same(compiled: CompiledModel, saved: Path) -> None:
    loaded = load(saved)
    np.testing.assert_array_equal(loaded(X), compiled(X))
    assert (loaded.inputs, loaded.outputs, loaded.target) == (compiled.inputs, compiled.outputs, compiled.target)
    assert loaded.num_threads == compiled.num_threads
    assert loaded.report.to_dict() == {**compiled.report.to_dict(), "profile": None}


def test_the_graph_comes_with_it(compiled: CompiledModel, saved: Path, tmp_path: Path) -> None:
    loaded = load(str(saved))
    assert [node.name for node in loaded.graph.graph] == [node.name for node in compiled.graph.graph]
    tensor = next(iter(loaded.graph.graph.initializers.values())).const_value
    assert tensor is not None
    assert not tensor.numpy().flags.owndata
    loaded.save_onnx(tmp_path / "again.onnx")
    assert len(ir.load(tmp_path / "again.onnx").graph) == len(compiled.graph.graph)


def test_the_graph_can_be_left_out(compiled: CompiledModel, tmp_path: Path) -> None:
    path = tmp_path / "slim.tersor"
    compiled.save(path, graph=False)
    loaded = load(path)
    np.testing.assert_array_equal(loaded(X), compiled(X))
    with pytest.raises(ArtifactError, match="was saved without its graph: save it with graph=True"):
        _ = loaded.graph


def test_the_same_model_gives_the_same_bytes(compiled: CompiledModel, saved: Path, tmp_path: Path) -> None:
    compiled.save(tmp_path / "again.tersor")
    assert (tmp_path / "again.tersor").read_bytes() == saved.read_bytes()


def test_parts_are_plain_aligned_and_stored_once(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        entries = [info.filename for info in archive.infolist()]
        contents = [archive.read(name) for name in entries]
    assert len(set(contents)) == len(contents)
    assert {"backend/model.onnx", "graph/model.onnx"} <= manifest["parts"].keys()
    reader = ArtifactReader(saved)
    data = saved.read_bytes()
    for name in reader.names:
        content = bytes(reader.read(name))
        assert data.index(content) % 64 == 0
        assert hashlib.sha256(content).hexdigest() == manifest["parts"][name]["sha256"]
    assert manifest["versions"]["onnxruntime"]
    assert manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 32]}]


class _Recorded(io.BytesIO):
    """A file that notes where each write begins and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[int, int]] = []

    def write(self, data: Any, /) -> int:
        begin = self.tell()
        written = super().write(data)
        self.writes.append((begin, self.tell()))
        return written


@pytest.mark.parametrize("as_file", [False, True])
def test_large_parts_are_written_in_pieces_that_fill_large_pages(tmp_path: Path, as_file: bool) -> None:
    content = np.random.default_rng(2).integers(0, 256, 3 * LARGE_PAGE + 100, np.uint8)
    path = tmp_path / "part"
    path.write_bytes(content.tobytes())
    file = _Recorded()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in ("a", "b"):
            digest, size = _write_part(archive, file, name, path if as_file else content)
            assert (digest, size) == (hashlib.sha256(content.tobytes()).hexdigest(), content.nbytes)
    assert not any(begin // LARGE_PAGE < (end - 1) // LARGE_PAGE for begin, end in file.writes)
    assert [begin % LARGE_PAGE for begin, end in file.writes if end - begin == LARGE_PAGE] == 4 * [0]
    with zipfile.ZipFile(file) as archive:
        assert archive.read("a") == archive.read("b") == content.tobytes()


@pytest.mark.parametrize("target", ["onnx", "cpu"])
def test_loading_imports_neither_torch_nor_passes_nor_a_compiler(tmp_path: Path, target: str) -> None:
    saved = tmp_path / "model.tersor"
    optimize(perceptron(), target, progress=False).save(saved)
    code = f"""
import sys
import numpy
from optimizer import load
load({str(saved)!r})(numpy.ones((2, 32), numpy.float32))
heavy = ["torch", "tvm", "passes", "onnxscript", "onnx", "onnx_ir", "optimizer.frontends", "optimizer.pass_manager"]
sys.exit(", ".join(name for name in heavy if name in sys.modules) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unpacked_files_are_private_and_go_away(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    loaded = load(saved)
    (folder,) = scratch.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    del loaded
    assert list(scratch.iterdir()) == []


# --- Damage ---


def rewritten(path: Path, change: Callable[[dict[str, bytes]], object], compression: int = 0) -> Path:
    """The same archive with other entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def manifest_changed(change: Callable[[dict[str, object]], object]) -> Callable[[dict[str, bytes]], None]:
    def apply(entries: dict[str, bytes]) -> None:
        manifest = json.loads(entries["manifest.json"])
        change(manifest)
        entries["manifest.json"] = json.dumps(manifest).encode()

    return apply


def test_every_truncation_is_refused(saved: Path) -> None:
    data = saved.read_bytes()
    for length in range(0, len(data) - 1, len(data) // 60):
        saved.write_bytes(data[:length])
        with pytest.raises(ArtifactError):
            load(saved)


def test_every_changed_byte_of_a_part_is_found(saved: Path) -> None:
    data = saved.read_bytes()
    reader = ArtifactReader(saved)
    for name in reader.names:
        position = data.index(bytes(reader.read(name))) + reader.size(name) // 2
        saved.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ArtifactError, match=f"its part '{name}' was changed|its part '.*' was changed"):
            load(saved)


def test_no_flipped_bit_anywhere_gives_another_exception(saved: Path, compiled: CompiledModel) -> None:
    data = saved.read_bytes()
    expected = compiled(X)
    rng = np.random.default_rng(0)
    refused = 0
    for bit in [*rng.choice(8 * len(data), 100).tolist(), *(8 * len(data) - 1 - rng.choice(8000, 100)).tolist()]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(flipped)
        try:
            np.testing.assert_array_equal(load(saved)(X), expected)
        except ArtifactError:
            refused += 1
    assert refused > 100


def drop(name: str) -> Callable[[dict[str, bytes]], object]:
    return lambda entries: entries.pop(name)


def traversal(manifest: dict[str, object]) -> None:
    parts = manifest["parts"]
    assert isinstance(parts, dict)
    parts["backend/../../evil"] = parts.pop("backend/model.onnx")


def without_hash(manifest: dict[str, object]) -> None:
    parts = manifest["parts"]
    assert isinstance(parts, dict)
    del parts["backend/model.onnx"]["sha256"]


def wrong_size(manifest: dict[str, object]) -> None:
    parts = manifest["parts"]
    assert isinstance(parts, dict)
    parts["report.json"]["size"] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("manifest.json"), "it is no saved model"),
        (drop("backend/model.onnx"), "its part 'backend/model.onnx' is missing or has the wrong size"),
        (lambda entries: entries.update({"manifest.json": b"{"}), "its manifest is no JSON"),
        (lambda entries: entries.update({"manifest.json": b"[]"}), "its manifest is no JSON object"),
        (lambda entries: entries.update({"manifest.json": b"[" * 100000}), "its manifest is no JSON"),
        (manifest_changed(lambda m: m.update(format=99)), "has format 99, this version reads 1: save the model again"),
        (manifest_changed(lambda m: m.update(machine=None)), "its manifest lacks 'machine'"),
        (manifest_changed(lambda m: m.pop("target")), "its manifest lacks 'target'"),
        (manifest_changed(lambda m: m.update(num_threads=0)), "its manifest says num_threads=0"),
        (manifest_changed(lambda m: m.update(backend_manifest={})), "damaged signature"),
        (manifest_changed(traversal), r"forbidden name 'backend/\.\./\.\./evil'"),
        (manifest_changed(without_hash), "no hash for 'backend/model.onnx'"),
        (manifest_changed(wrong_size), "'report.json' is missing or has the wrong size"),
    ],
)
def test_a_tampered_file_is_refused_and_leaves_nothing_behind(
    saved: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, bytes]], object],
    message: str,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ArtifactError, match=message):
        load(rewritten(saved, change))
    assert list(tmp_path.iterdir()) == [saved]


def test_compressed_entries_are_refused(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="is not stored as it should be"):
        load(rewritten(saved, lambda entries: None, compression=zipfile.ZIP_DEFLATED))


def test_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.tersor"
    with pytest.raises(ArtifactError, match=r"cannot read .*: No such file"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError):
        load(path)
    path.write_bytes(b"\x7fELF" * 1000)
    with pytest.raises(ArtifactError, match="it is no saved model, or truncated"):
        load(path)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ArtifactError, match="it is no saved model"):
        load(path)


# --- Writing ---


def test_a_folder_that_does_not_exist(compiled: CompiledModel, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write .*: No such file or directory; nothing was written"):
        compiled.save(tmp_path / "missing" / "model.tersor")
    with pytest.raises(ArtifactError, match="cannot write"):
        compiled.save_onnx(tmp_path / "missing" / "model.onnx")


def test_a_read_only_folder(compiled: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr("optimizer.atomic_file.os.open", refuse)
        with pytest.raises(ArtifactError, match="Read-only file system; nothing was written"):
            compiled.save(tmp_path / "model.tersor")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save", ["save", "save_onnx"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(compiled: CompiledModel, tmp_path: Path, save: str) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write .*; nothing was written"):
            getattr(compiled, save)(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"model": b"old"}


def test_an_interrupt_leaves_the_old_file_and_nothing_else(
    compiled: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "model.tersor"
    path.write_bytes(b"old")
    monkeypatch.setattr("optimizer.artifact._write_part", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compiled.save(path)
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"model.tersor": b"old"}


def test_a_written_file_has_the_permissions_of_any_other(compiled: CompiledModel, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    compiled.save(tmp_path / "model.tersor")
    assert (tmp_path / "model.tersor").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_weights_over_the_limit_go_beside_the_onnx_file(
    compiled: CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.onnx_writer.INLINE_BYTES", 100)
    compiled.save_onnx(tmp_path / "model.onnx")
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    again = optimize(tmp_path / "model.onnx", "onnx", progress=False)
    np.testing.assert_array_equal(again(X), compiled(X))
