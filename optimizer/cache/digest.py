"""A digest that stands for all that went into it: short facts in order, and large buffers hashed on all cores."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from optimizer.executable import Array

__all__ = ["Digest", "Undigestable"]

_PIECE = 1 << 25
"""Bytes that one thread hashes at a time; hashlib lets the other threads run meanwhile."""


class Undigestable(Exception):
    """No digest can stand for all that something does; the message says for what and why."""


class Digest:
    """Collects what a result depends on.

    Each fact goes in with its length before it, so that two lists of facts never give the same bytes.
    """

    def __init__(self) -> None:
        self._facts = hashlib.sha256()
        self._buffers: list[memoryview] = []

    def add(self, *facts: str | bytes | int) -> None:
        """Add facts."""
        for fact in facts:
            data = fact if isinstance(fact, bytes) else str(fact).encode("utf-8", "surrogatepass")
            self._facts.update(b"%d:" % len(data))
            self._facts.update(data)

    def add_bytes(self, data: bytes | memoryview) -> None:
        """Add a large buffer, which is kept and hashed in the end."""
        self.add("buffer", len(data))
        self._buffers.append(memoryview(data))

    def add_array(self, array: Array) -> None:
        """Add the elements of an array, as they lie in memory, its type and its shape."""
        self.add("array", array.dtype.str, array.dtype.name, repr(array.shape))
        self.add_bytes(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """SHA-256 of everything."""
        total = self._facts.copy()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for digest in pool.map(lambda piece: hashlib.sha256(piece).digest(), self._pieces()):
                total.update(digest)
        return total.hexdigest()

    def _pieces(self) -> Iterator[memoryview]:
        for data in self._buffers:
            for start in range(0, len(data), _PIECE):
                yield data[start : start + _PIECE]
