"""Weights where another process can map them."""

from __future__ import annotations

import bisect
import functools
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import onnx_ir as ir

from optimizer.executable import Array

__all__ = ["SharedWeights", "WeightLocation"]

_ALIGNMENT = 64
_MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class WeightLocation:
    """A tensor inside a file.

    Attributes:
        path: The file.
        offset: Where the first element begins, in bytes.
        dtype: The elements' type, as numpy calls it.
        shape: Its sizes.
    """

    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def map(self) -> Array:
        """The elements, read from the file where they are needed."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


class SharedWeights:
    """Tells where another process can map a tensor.

    A tensor that is mapped from a file is found there; any other is copied, once, into a file in memory that lives as
    long as this object.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[ir.TensorProtocol, WeightLocation]] = {}

    def __enter__(self) -> SharedWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def locate(self, tensor: ir.TensorProtocol) -> WeightLocation:
        """Where the tensor is; its elements must be of a type that numpy itself knows.

        Raises:
            OSError: There is not enough memory for a copy.
        """
        if id(tensor) not in self._places:  # the tensor is kept, so that no other one gets its id
            self._places[id(tensor)] = (tensor, self._place(tensor))
        return self._places[id(tensor)][1]

    def close(self) -> None:
        """Give the memory back."""
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _place(self, tensor: ir.TensorProtocol) -> WeightLocation:
        array = np.ascontiguousarray(tensor.numpy())
        dtype, shape = array.dtype.str, array.shape
        found = self._maps.find(array)
        if found is not None:
            return WeightLocation(*found, dtype, shape)
        if self._file is None:
            self._file = _memory_file()
        file = self._file
        offset = -(-file.seek(0, os.SEEK_END) // _ALIGNMENT) * _ALIGNMENT
        file.seek(offset)
        file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        return WeightLocation(_path_of(file), offset, dtype, shape)

    @functools.cached_property
    def _maps(self) -> _FileMaps:
        return _FileMaps()


class _FileMaps:
    """The files that this process has mapped for reading, by address (Linux; elsewhere none are found)."""

    def __init__(self) -> None:
        self._regions: list[tuple[int, int, int, str]] = []
        if _MAPS.exists():
            lines = (line.split(maxsplit=5) for line in _MAPS.read_text(encoding="utf-8").splitlines())
            self._regions = sorted(_region(fields) for fields in lines if _is_file(fields))

    def find(self, array: Array) -> tuple[str, int] | None:
        """The file and the offset in it where the elements are, if all of them lie in one map."""
        address = array.__array_interface__["data"][0]
        index = bisect.bisect_right(self._regions, (address, sys.maxsize)) - 1
        if index < 0:
            return None
        start, end, offset, path = self._regions[index]
        return (path, offset + address - start) if address + array.nbytes <= end else None


def _is_file(fields: list[str]) -> bool:
    """Whether a line of the table is of a file that is mapped read-only and shared, so that it is as it is on disk."""
    if len(fields) < 6 or fields[1] != "r--s":
        return False
    try:
        return os.stat(fields[5]).st_ino == int(fields[4])  # it was not removed or replaced
    except OSError:
        return False


def _region(fields: list[str]) -> tuple[int, int, int, str]:
    start, end = (int(address, 16) for address in fields[0].split("-"))
    return start, end, int(fields[2], 16), fields[5]


def _memory_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("tersor-weights"), "w+b")
    return tempfile.NamedTemporaryFile(prefix="tersor-weights-")


def _path_of(file: IO[bytes]) -> str:
    return f"/proc/{os.getpid()}/fd/{file.fileno()}" if hasattr(os, "memfd_create") else file.name
