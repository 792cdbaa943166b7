"""A compiled model in one file.

The file is a zip archive whose entries are stored as they are, each at a multiple of 64 bytes, so that any tool can
look into it and weights can be mapped:

    manifest.json      format, versions, target, needed machine, signature; name, size and SHA-256 of every other part
    report.json        what `optimize()` did
    backend/...        what the backend needs to run the model: native code, packed weights
    graph/model.onnx   the optimized graph, and graph/weight00000 ... its weights (left out by `save(graph=False)`)
    graph/original     the original graph for `diff()`, compressed, with hashes in the place of weights (left out, too)

A part with the content of another one is stored once. The weights of the graph and those that a backend packed
for its kernels differ, so both are stored.

Loading checks the manifest and every hash before anything else is done with a part. Parts of the backend are copied
into a private folder, which goes away with the model; the graph stays in the file until it is asked for. The hashes
guard against damage; who can forge the whole file can forge them too, so load only files from where you trust.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import weakref
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from optimizer.artifact_reader import FORMAT, ArtifactReader
from optimizer.atomic_file import atomic_write
from optimizer.compiled import CompiledModel
from optimizer.errors import ArtifactError
from optimizer.executable import Array, Executable, Part, TensorSpec
from optimizer.large_pages import LARGE_PAGE
from optimizer.machine import machine_needed, why_unusable
from optimizer.report import Report
from optimizer.scratch import folder_kept_on_success
from optimizer.versions import versions

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.model_diff.facts import Side

__all__ = [
    "Loader",
    "load_artifact",
    "load_open_artifact",
    "read_graph",
    "read_original",
    "read_report",
    "save_artifact",
    "signature_of",
]

_ALIGNMENT = 64
_PADDING_ID = 0xD935
"""The id of an extra field that only pads, as Android's zipalign uses it."""
_GRAPH = "graph/model.onnx"
_WEIGHTS = "graph/weight"
_ORIGINAL = "graph/original"
_BACKEND = "backend/"
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
"""The same model gives the same bytes, whenever it is saved."""


class Loader(Protocol):
    """The part of a backend that loading needs."""

    mappable: Collection[str]
    """The parts that it also takes as they lie in memory."""

    def load(self, parts: Mapping[str, Path | Array], manifest: Mapping[str, object]) -> Executable:
        """Make a saved executable runnable again."""
        ...


def save_artifact(
    compiled: CompiledModel,
    executable: Executable,
    path: Path,
    *,
    with_graph: bool,
    original: Side | None,
    facts: Mapping[str, object] | None = None,
    private: bool = False,
) -> None:
    """Write a compiled model into one file.

    Args:
        compiled: The model.
        executable: What it runs.
        path: The file.
        with_graph: Whether to store the optimized graph.
        original: The original graph, stored with the optimized one.
        facts: Further entries of the manifest.
        private: See `atomic_write`.

    Raises:
        ArtifactError: The file cannot be written; nothing is left behind.
    """
    parts: dict[str, Part] = {"report.json": compiled.report.to_json().encode()}
    parts.update({_BACKEND + name: part for name, part in executable.parts().items()})
    if with_graph:
        from optimizer.ir.weights import detach_weights

        data, files = detach_weights(compiled.graph)
        parts[_GRAPH] = data
        parts.update({f"graph/{name}": content for name, content in files.items()})
        if original is not None:
            from optimizer.model_diff.stored import pack_side

            parts[_ORIGINAL] = pack_side(original)
    manifest = {
        **(facts or {}),
        "format": FORMAT,
        "target": compiled.target,
        "backend": executable.backend,
        "machine": machine_needed(compiled.target),
        "versions": versions(),
        "num_threads": compiled.num_threads,
        "inputs": [asdict(spec) for spec in compiled.inputs],
        "outputs": [asdict(spec) for spec in compiled.outputs],
        "backend_manifest": executable.manifest(),
    }
    with atomic_write(path, private=private) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        manifest["parts"] = _write_parts(archive, file, parts)
        archive.writestr(zipfile.ZipInfo("manifest.json", _TIMESTAMP), json.dumps(manifest, indent=1, sort_keys=True))


def load_artifact(path: Path, get_loader: Callable[[str], Loader]) -> CompiledModel:
    """Read a compiled model that `CompiledModel.save` wrote.

    Args:
        path: The file.
        get_loader: Gives the backend of a name, which makes its parts runnable again.

    Raises:
        ArtifactError: The file cannot be read, is damaged or was changed, or is of another format or machine.
    """
    return load_open_artifact(ArtifactReader(path), get_loader)


def load_open_artifact(
    reader: ArtifactReader, get_loader: Callable[[str], Loader], *, in_place: bool = False
) -> CompiledModel:
    """The same from a file that is open already.

    Args:
        reader: The file.
        get_loader: As for `load_artifact`.
        in_place: Whether the file stays as it is while it is open, so that its weights need not be copied.
    """
    reason = why_unusable(reader.mapping("machine"))
    if reason:
        raise ArtifactError(f"{str(reader.path)!r} cannot run here: {reason}: compile it again on this machine")
    with folder_kept_on_success() as folder:
        loader = get_loader(reader.text("backend"))
        left = [name for name in loader.mappable if in_place and _BACKEND + name in reader.names]
        parts: dict[str, Path | Array] = dict(reader.extract(_BACKEND, folder, left))
        parts.update((name, reader.map(_BACKEND + name)) for name in left)
        reader.check_others(_BACKEND)
        executable = loader.load(parts, reader.mapping("backend_manifest"))
        compiled = CompiledModel(
            executable,
            graph=partial(read_graph, reader),
            original=partial(read_original, reader),
            report=read_report(reader),
            target=reader.text("target"),
            num_threads=reader.positive("num_threads"),
        )
        weakref.finalize(compiled, shutil.rmtree, folder, True)
        return compiled


def _write_parts(archive: zipfile.ZipFile, file: BinaryIO, parts: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
    sizes = Counter(map(_size, parts.values()))
    entries: dict[str, dict[str, Any]] = {}
    stored: dict[str, str] = {}
    for name, part in sorted(parts.items()):
        same = stored.setdefault(_digest(part), name) if sizes[_size(part)] > 1 else name
        if same == name:
            digest, size = _write_part(archive, file, name, part)
            entries[name] = {"sha256": digest, "size": size, "entry": name}
        else:
            entries[name] = dict(entries[same])
    return entries


def _digest(part: Part) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(part):
        digest.update(chunk)
    return digest.hexdigest()


def _write_part(archive: zipfile.ZipFile, file: BinaryIO, name: str, part: Part) -> tuple[str, int]:
    info = zipfile.ZipInfo(name, _TIMESTAMP)
    info.file_size = size = _size(part)
    info.external_attr = 0o600 << 16
    is_large = size >= zipfile.ZIP64_LIMIT // 2
    info.extra = _padding(file.tell() + 30 + len(name) + (20 if is_large else 0))
    digest = hashlib.sha256()
    with archive.open(info, "w", force_zip64=is_large) as entry:
        for chunk in _chunks(part, -file.tell() % LARGE_PAGE):
            digest.update(chunk)
            entry.write(chunk)
    return digest.hexdigest(), size


def _padding(position: int) -> bytes:
    """An extra field after which the content starts at a multiple of the alignment."""
    header = 4
    fill = -(position + header) % _ALIGNMENT
    return struct.pack("<HH", _PADDING_ID, fill) + bytes(fill)


def _size(part: Part) -> int:
    if isinstance(part, Path):
        return part.stat().st_size
    return part.nbytes if isinstance(part, np.ndarray) else len(part)


def _chunks(part: Part, first: int = 0) -> Iterator[bytes | memoryview]:
    """The content in pieces of a large page, after one of `first` bytes."""
    if isinstance(part, Path):
        with part.open("rb") as file:
            if first:
                yield file.read(first)
            while chunk := file.read(LARGE_PAGE):
                yield chunk
        return
    data = memoryview(
        np.ascontiguousarray(part).reshape(-1).view(np.uint8).data if isinstance(part, np.ndarray) else part
    )
    yield data[:first]
    for start in range(first, len(data), LARGE_PAGE):
        yield data[start : start + LARGE_PAGE]


def signature_of(reader: ArtifactReader, key: str) -> tuple[TensorSpec, ...]:
    """The saved model's `"inputs"` or `"outputs"`."""
    return TensorSpec.from_json(reader.value(key))


def read_report(reader: ArtifactReader) -> Report:
    """What was done when the model was made.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    try:
        return Report.from_dict(json.loads(bytes(reader.read("report.json"))))
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{reader.path}: its report is damaged: {error}") from error


def read_graph(reader: ArtifactReader) -> ir.Model:
    """The optimized graph, its weights mapped from the file.

    Raises:
        ArtifactError: The model was saved without it, or it is damaged.
    """
    import onnx
    import onnx_ir

    from optimizer.frontends.tensors import attach_weights

    if _GRAPH not in reader.names:
        raise ArtifactError(f"{reader.path} was saved without its graph: save it with graph=True")
    model: ir.Model = onnx_ir.from_proto(onnx.ModelProto.FromString(bytes(reader.read(_GRAPH))))
    names = [name for name in reader.names if name.startswith(_WEIGHTS)]
    attach_weights(model, reader.path.parent, {name.removeprefix("graph/"): reader.read(name) for name in names})
    return model


def read_original(reader: ArtifactReader) -> Side:
    """The original graph without its weights.

    Raises:
        ArtifactError: The model was saved without it, or it is damaged.
    """
    from optimizer.model_diff.stored import unpack_side

    if _ORIGINAL not in reader.names:
        raise ArtifactError(f"{reader.path} was saved without its original graph: save it with graph=True")
    return unpack_side(bytes(reader.read(_ORIGINAL)))
