"""Files that are there completely or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from optimizer.errors import ArtifactError

__all__ = ["TEMPORARY_SUFFIX", "atomic_write"]

TEMPORARY_SUFFIX = ".part"
"""How a file's name ends while it is written; one that stays was left by a process that was killed."""


@contextlib.contextmanager
def atomic_write(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """Write a file that replaces `path` at the end of the block, if the block ends well.

    The content goes to a temporary file in the same folder, which is flushed to disk and renamed. After an error or an
    interrupt the temporary file is gone and `path` is what it was.

    Args:
        path: The file.
        private: For the user's own cache: nobody else may read or write the file, and nobody waits for the disk, so
            that a power failure may leave a part of it.

    Raises:
        ArtifactError: The folder does not exist or is read-only, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600 if private else 0o666)
    except OSError as error:
        raise _failure(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield cast(BinaryIO, file)
            file.flush()
            if not private:
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _failure(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot write {str(path)!r}: {error.strerror or error}; nothing was written")
