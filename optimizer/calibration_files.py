"""Calibration data from files, for the command line."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from optimizer.errors import InputError
from optimizer.executable import Array

__all__ = ["read_sets"]


def read_sets(folder: Path) -> Iterator[Mapping[str, Array]]:
    """The sets of inputs in a folder: each an `.npz` file with an array for each input by name, in the order of names.

    Args:
        folder: Files in it that end otherwise are passed over.

    Raises:
        InputError: There is no such folder or no such file in it, or a file cannot be read. No pickle is loaded.
    """
    paths = sorted(folder.glob("*.npz")) if folder.is_dir() else []
    if not paths:
        raise InputError(f"{str(folder)!r} is no folder with .npz files, one for each set of calibration inputs")
    return (_read(path) for path in paths)


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read the calibration inputs {str(path)!r}: {error}") from error
