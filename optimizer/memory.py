"""Memory that was freed, given back to the system, and the search for more of it, put off."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import sys
from collections.abc import Callable, Iterator

__all__ = ["collector_paused", "give_back_free_memory", "old_objects_aside"]


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Look for no garbage meanwhile: the collector would go through the whole model, which stays, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def old_objects_aside() -> Iterator[None]:
    """Look for garbage only among what is made meanwhile: a search among a million objects of PyTorch takes 0.4 s.

    Somebody else's set of frozen objects is left as it is.
    """
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


def give_back_free_memory() -> None:
    """Return freed memory to the system at once.

    glibc keeps freed blocks below 32 MiB for later, and most weights are smaller: after a runtime was unloaded, its
    copy of the model would go on counting as used. Does nothing with other C libraries.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
