"""Files whose pages are large in memory: weights that are read once a run then need few entries of the TLB.

Linux keeps what is written to a file in pieces as long as the write, if that begins at a multiple of its length, and
maps a piece of 2 MiB by one entry of the page table (ext4, XFS, Btrfs and tmpfs have such pieces). Elsewhere nothing
is gained, and nothing lost.
"""

from __future__ import annotations

import contextlib
import mmap
from typing import BinaryIO

__all__ = ["LARGE_PAGE", "mapped"]

LARGE_PAGE = 1 << 21
"""Bytes; a file is written in pieces of this length, each at a multiple of it."""


def mapped(file: BinaryIO) -> mmap.mmap:
    """A file as it lies in memory, in large pages where the system has them; what is written to it stays here."""
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel or a file system without them
            mapping.madvise(advice)
    return mapping
