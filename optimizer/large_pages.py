"""Files whose pages are large in memory: weights that are read once a run then need few entries of the TLB.

Linux keeps what is written to a file in pieces as long as the write, if that begins at a multiple of its length, and
maps a piece of 2 MiB by one entry of the page table (ext4, XFS, Btrfs and tmpfs have such pieces). Elsewhere nothing
is gained, and nothing lost.
"""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["LARGE_PAGE", "ask_for_large_pages"]

LARGE_PAGE = 1 << 21
"""Bytes; a file is written in pieces of this length, each at a multiple of it."""


def ask_for_large_pages(mapping: mmap.mmap) -> None:
    """Let the system read what is not in memory yet in large pieces, where it can."""
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a kernel or a file system without them
            mapping.madvise(advice)
