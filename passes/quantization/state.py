"""Finished layers kept in a folder, so that a run that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from optimizer.atomic_file import atomic_write
from optimizer.calibration import Samples
from optimizer.errors import InputError
from optimizer.ir.fingerprint import fingerprint
from passes.quantization.blocks import Blocks, Quantized
from passes.quantization.methods import Choice

__all__ = ["Finished"]

_FORMAT = "1"
"""Part of every key: raised when what a method computes changes."""


class Finished:
    """The layers that are done.

    A file each, written completely or not at all. The folder can be deleted at any time; so can be what other models
    left there.

    Args:
        folder: Is made if it is not there; `None` keeps nothing.
        model: Before anything was done to it.
        options: What else the result depends on.
        samples: The calibration data.

    Raises:
        InputError: The folder cannot be made.
    """

    def __init__(self, folder: str | None, model: ir.Model, options: str, samples: Samples | None) -> None:
        self._folder = None
        if folder is not None:
            self._folder = Path(folder) / _key(model, options, samples)
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"resume={folder!r} is no folder that can be written: {error.strerror}") from error

    def load(self, index: int, blocks: Blocks) -> Choice | None:
        """What was found for a layer; `None` if it is not there or cannot be read."""
        if self._folder is None:
            return None
        try:
            with (self._folder / f"{index}.npz").open("rb") as file, np.load(file, allow_pickle=False) as found:
                zeros = found["zeros"] if "zeros" in found.files else None
                quantized = Quantized(found["codes"], found["scales"], zeros, blocks)
                scales = found["input_scales"] if "input_scales" in found.files else None
                return Choice(quantized, str(found["method"]), float(found["error"]), scales)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def save(self, index: int, choice: Choice) -> None:
        """Keep what was found for a layer.

        Raises:
            ArtifactError: The folder is gone or cannot be written.
        """
        if self._folder is None:
            return
        quantized = choice.quantized
        optional = {"zeros": quantized.zeros, "input_scales": choice.input_scales}
        arrays: dict[str, Any] = {name: array for name, array in optional.items() if array is not None}
        arrays.update(codes=quantized.codes, scales=quantized.scales, method=choice.method, error=choice.error)
        with atomic_write(self._folder / f"{index}.npz") as file:
            np.savez(file, **arrays)


def _key(model: ir.Model, options: str, samples: Samples | None) -> str:
    digest = hashlib.blake2b(f"{_FORMAT} {options} {fingerprint(model)}".encode(), digest_size=16)
    for given in samples or ():
        for array in map(np.asarray, given):
            digest.update(f"{array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
