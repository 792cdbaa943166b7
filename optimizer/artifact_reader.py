"""Read a saved model without trusting it: sizes, names and hashes are checked before a byte is used."""

from __future__ import annotations

import hashlib
import hmac
import json
import mmap
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.errors import ArtifactError
from optimizer.large_pages import LARGE_PAGE, mapped

__all__ = ["FORMAT", "ArtifactReader"]

FORMAT = 1

_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 1 << 28
_BROKEN_ZIP = (zipfile.BadZipFile, EOFError, LookupError, RuntimeError, ValueError, struct.error)
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class ArtifactReader:
    """A saved model, open for reading.

    Attributes:
        path: The file.
        names: The parts that it has.

    Raises:
        ArtifactError: The file cannot be read, or is no saved model, or its manifest is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                self._own = mapped(file)
                with zipfile.ZipFile(file) as archive:
                    self._places = {info.filename: self._place(info) for info in archive.infolist()}
                    self._manifest_crc = archive.getinfo(_MANIFEST).CRC
        except OSError as error:
            raise ArtifactError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
        except _BROKEN_ZIP as error:
            raise self._damaged(f"it is no saved model, or truncated ({error})") from error
        self._manifest = self._read_manifest()
        self._parts = self._checked_parts()
        self.names = tuple(self._parts)

    def read(self, name: str) -> memoryview:
        """A part's content, after its hash was checked."""
        if name not in self._parts:
            raise self._damaged(f"its part {name!r} is missing")
        part = self._parts[name]
        start, size = self._places[part["entry"]]
        content = self._data[start : start + size]
        self._check_hash(name, hashlib.sha256(content).hexdigest())
        return content

    def extract(self, prefix: str, folder: Path, leave: Collection[str] = ()) -> dict[str, Path]:
        """Copy the parts below `prefix` into an empty, private folder; what was written is what was hashed.

        Args:
            prefix: Of the names.
            folder: Where to.
            leave: Names, without the prefix, of those that are not wanted.
        """
        files: dict[str, Path] = {}
        for name in self._below(prefix):
            if name.removeprefix(prefix) in leave:
                continue
            target = folder / name.removeprefix(prefix)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._copy(name, target)
            files[name.removeprefix(prefix)] = target
        return files

    def map(self, name: str) -> npt.NDArray[np.uint8]:
        """A part as it lies in the file, after its hash was checked; what is written to it stays in this process."""
        start, size = self._places[self._parts[name]["entry"]] if self.read(name) else (0, 0)
        return np.frombuffer(self._own, np.uint8, size, start)

    def check_others(self, prefix: str) -> None:
        """Check the hashes of all parts that are not below `prefix`."""
        below = set(self._below(prefix))
        content = {(part["entry"], part["sha256"]): name for name, part in self._parts.items() if name not in below}
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for _ in pool.map(self.read, content.values()):
                pass

    def size(self, name: str) -> int:
        """A part's size in bytes."""
        return int(self._parts[name]["size"])

    def value(self, key: str) -> object:
        """An entry of the manifest, `None` if it is not there."""
        return self._manifest.get(key)

    def text(self, key: str) -> str:
        """A string of the manifest."""
        return str(self._typed(key, str))

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object of the manifest."""
        found: Mapping[str, Any] = self._typed(key, dict)
        return found

    def positive(self, key: str) -> int:
        """A positive number of the manifest."""
        value = self._typed(key, int)
        if isinstance(value, bool) or not 0 < value < 2**16:
            raise self._damaged(f"its manifest says {key}={value!r}")
        return int(value)

    def _typed(self, key: str, type_: type) -> Any:
        value = self._manifest.get(key)
        if not isinstance(value, type_):
            raise self._damaged(f"its manifest lacks {key!r}")
        return value

    def _below(self, prefix: str) -> list[str]:
        return [name for name in self.names if name.startswith(prefix)]

    def _copy(self, name: str, target: Path) -> None:
        start, size = self._places[self._parts[name]["entry"]]
        digest = hashlib.sha256()
        try:
            with target.open("xb") as file:
                for at in range(start, start + size, LARGE_PAGE):
                    chunk = bytes(self._data[at : min(at + LARGE_PAGE, start + size)])
                    digest.update(chunk)
                    file.write(chunk)
        except OSError as error:
            raise ArtifactError(f"cannot unpack {self.path} into {target.parent}: {error.strerror or error}") from error
        self._check_hash(name, digest.hexdigest())

    def _check_hash(self, name: str, digest: str) -> None:
        if not hmac.compare_digest(digest, self._parts[name]["sha256"]):
            raise self._damaged(f"its part {name!r} was changed after it was saved")

    def _place(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        """Where an entry's content lies, from its own header."""
        header = self._data[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
        magic, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
        is_plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if magic != b"PK\x03\x04" or not is_plain or info.file_size < 0 or start + info.file_size > len(self._data):
            raise self._damaged(f"its entry {info.filename!r} is not stored as it should be")
        return start, info.file_size

    def _read_manifest(self) -> dict[str, Any]:
        start, size = self._places[_MANIFEST]
        if size > _MAX_MANIFEST_BYTES:
            raise self._damaged(f"its manifest has {size} bytes")
        content = bytes(self._data[start : start + size])
        if zlib.crc32(content) != self._manifest_crc:
            raise self._damaged("its manifest was changed after it was saved")
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its manifest is no JSON ({error})") from error
        if not isinstance(manifest, dict):
            raise self._damaged("its manifest is no JSON object")
        if manifest.get("format") != FORMAT:
            raise ArtifactError(
                f"{self.path} has format {manifest.get('format')!r}, this version reads {FORMAT}: save the model again"
            )
        return manifest

    def _checked_parts(self) -> dict[str, dict[str, Any]]:
        parts = self.mapping("parts")
        for name, part in parts.items():
            if not _NAME.fullmatch(name):
                raise self._damaged(f"its part has a forbidden name {name!r}")
            if not isinstance(part, dict) or not isinstance(part.get("sha256"), str) or len(part["sha256"]) != 64:
                raise self._damaged(f"its manifest has no hash for {name!r}")
            place = self._places.get(str(part.get("entry")))
            if place is None or place[1] != part.get("size"):
                raise self._damaged(f"its part {name!r} is missing or has the wrong size")
        return dict(parts)

    def _damaged(self, reason: str) -> ArtifactError:
        return ArtifactError(f"{str(self.path)!r} cannot be used: {reason}: save the model again")
