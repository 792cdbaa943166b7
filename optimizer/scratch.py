"""Folders for what has to be a file while a model is used."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["folder_kept_on_success"]


@contextlib.contextmanager
def folder_kept_on_success() -> Iterator[Path]:
    """A new private folder, which is the caller's to remove if the block ends well.

    After an error or an interrupt it is gone, with all that is in it.

    Raises:
        OSError: No folder can be made: the disk is full or read-only.
    """
    folder = Path(tempfile.mkdtemp(prefix="tersor-"))
    try:
        yield folder
    except BaseException:  # an interrupt leaves nobody behind who would remove it
        shutil.rmtree(folder, ignore_errors=True)
        raise
