"""The folder of the cache: compiled models by key, the longest unused of which go when there are too many.

Nothing in here is an error of `optimize()`: where the folder cannot be read or written there is no cache. An entry is
loaded only if it, and the folder, are the user's own and nobody else may write there; a saved model's hashes tell
damage, but not who made it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.artifact import Loader, load_open_artifact, save_artifact
from optimizer.artifact_reader import ArtifactReader
from optimizer.atomic_file import TEMPORARY_SUFFIX
from optimizer.cache_record import CacheRecord
from optimizer.compiled import CompiledModel
from optimizer.errors import ArtifactError, TersorError
from optimizer.executable import Executable
from optimizer.text import size

if TYPE_CHECKING:
    from optimizer.model_diff.facts import Side

__all__ = ["TUNING_FOLDER", "Entry", "Store", "Unusable", "default_folder", "default_limit"]

SUFFIX = ".tersor"
TUNING_FOLDER = "tuning"
"""A folder beside the models: see `optimizer.cache.winners`."""
_RECORD = "cache"
_MOST_BYTES = 10 * 2**30
_SHARE_OF_DISK = 0.25
"""The cache may take so much of what is free and what it has already."""
_STALE_SECONDS = 3600.0
"""A file that is still being written after an hour was left by a process that was killed."""

_BAD_ENTRY = (TersorError, OSError, RuntimeError, ValueError, LookupError, TypeError)
"""What loading an entry may raise; it is then as if it were not there."""


class Unusable(Exception):
    """The folder cannot be used; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One compiled model.

    Attributes:
        path: Its file.
        bytes: The size of the file.
        used: When it was last used, in seconds since the epoch.
    """

    path: Path
    bytes: int
    used: float

    def record(self) -> CacheRecord | None:
        """What it says of itself; `None` if it is damaged."""
        try:
            return CacheRecord.from_dict(ArtifactReader(self.path).mapping(_RECORD))
        except _BAD_ENTRY:
            return None


def default_folder() -> Path:
    """`tersor` in the user's folder for caches, as the XDG specification has it.

    Raises:
        Unusable: The user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification says to ignore a relative one
        return Path(base) / "tersor"
    try:
        return Path.home() / ".cache" / "tersor"
    except RuntimeError as error:
        raise Unusable("there is no home directory") from error


def default_limit(folder: Path, held: int) -> int:
    """How many bytes a cache that holds `held` may have: 10 GiB, or a quarter of the disk's space if that is less."""
    return min(_MOST_BYTES, int((shutil.disk_usage(folder).free + held) * _SHARE_OF_DISK))


class Store:
    """One folder.

    Args:
        folder: Made when something is kept.
        limit: The most bytes it may hold; by default as `default_limit` says.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self._limit = limit

    @property
    def limit(self) -> int:
        """The most bytes it may hold.

        Raises:
            OSError: The folder is not there.
        """
        return default_limit(self.folder, self.bytes) if self._limit is None else self._limit

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(entry.bytes for entry in self.entries())

    def entries(self) -> list[Entry]:
        """What is there, the longest unused first."""
        found = [_entry(path) for path in self._files(SUFFIX)]
        return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.used, entry.path))

    def find(self, key: str, get_loader: Callable[[str], Loader]) -> tuple[CompiledModel, CacheRecord] | None:
        """The model of a key, `None` if it is not there; a damaged one is removed.

        Raises:
            Unusable: The entry cannot be trusted.
        """
        path = self._path(key)
        try:
            _check_owner(self.folder, path)
            reader = ArtifactReader(path)
            record = CacheRecord.from_dict(reader.mapping(_RECORD))
            if record.key != key:
                raise ArtifactError(f"{str(path)!r} is the entry of another key")
            compiled = load_open_artifact(reader, get_loader, in_place=True)
        except FileNotFoundError:
            return None
        except _BAD_ENTRY:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # a folder that is only read keeps its order
            os.utime(path)
        return compiled, record

    def keep(self, compiled: CompiledModel, executable: Executable, original: Side, record: CacheRecord) -> None:
        """Store a model, and let others go if there are too many.

        Args:
            compiled: The model.
            executable: What it runs.
            original: The graph before the passes.
            record: What to say of it.

        Raises:
            Unusable: It could not be stored, or is larger than the whole cache may be.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_owner(self.folder)
            limit = self.limit
            save_artifact(
                compiled,
                executable,
                self._path(record.key),
                with_graph=True,
                original=original,
                facts={_RECORD: record.to_dict()},
                private=True,
            )
            self._shrink(limit)
        except ArtifactError as error:
            raise Unusable(str(error)) from error
        except OSError as error:
            raise Unusable(f"cannot use {str(self.folder)!r}: {error.strerror or error}") from error
        if not self._path(record.key).exists():
            raise Unusable(f"it is larger than the {size(limit)} that the cache may have")

    def clear(self) -> list[Entry]:
        """Remove all entries, and what was measured for them; gives the entries that were removed.

        Raises:
            OSError: One of them cannot be removed.
        """
        removed = self.entries()
        measured = (self.folder / TUNING_FOLDER).glob("*")
        for path in [*(entry.path for entry in removed), *self._files(TEMPORARY_SUFFIX), *measured]:
            path.unlink(missing_ok=True)
        return removed

    def _shrink(self, limit: int) -> None:
        for path in self._files(TEMPORARY_SUFFIX):
            entry = _entry(path)
            if entry is not None and entry.used < time.time() - _STALE_SECONDS:
                path.unlink(missing_ok=True)
        entries = self.entries()
        excess = sum(entry.bytes for entry in entries) - limit
        for entry in entries:
            if excess <= 0:
                break
            with contextlib.suppress(OSError):  # another process may hold it, or was faster
                entry.path.unlink()
            excess -= entry.bytes

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _files(self, suffix: str) -> Iterator[Path]:
        try:
            yield from (path for path in self.folder.iterdir() if path.name.endswith(suffix))
        except OSError:
            return


def _entry(path: Path) -> Entry | None:
    try:
        state = path.lstat()
    except OSError:  # another process has removed it
        return None
    return Entry(path, state.st_size, state.st_mtime) if stat.S_ISREG(state.st_mode) else None


def _check_owner(*paths: Path) -> None:
    if not hasattr(os, "geteuid"):
        return
    for path in paths:
        state = path.lstat() if path.name.endswith(SUFFIX) else path.stat()
        if state.st_uid != os.geteuid() or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or stat.S_ISLNK(state.st_mode):
            raise Unusable(f"others than you may write {str(path)!r}")
