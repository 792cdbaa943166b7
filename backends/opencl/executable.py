"""A compiled plan and its OpenCL program."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from backends.gpu.executable import DeviceExecutable, Saved, read_saved
from backends.opencl.queue import opened
from optimizer.errors import ArtifactError
from optimizer.gpus import GPUS
from optimizer.text import seconds

__all__ = ["load_executable", "made"]

Array = npt.NDArray[Any]

_SOURCE = "kernels.cl"


def made(saved: Saved, source: str, wanted: str) -> DeviceExecutable:
    """With the text of its program; `wanted`: which device runs it, see `backends.opencl.device.open_device`."""
    opens = partial(opened, saved.program, source, wanted)
    executable = DeviceExecutable("opencl", saved, {_SOURCE: source.encode()}, {"device": wanted}, opens)
    estimate, assumed = saved.program.estimated_seconds, GPUS["opencl"]
    if estimate is not None:
        executable.notes.append(
            f"estimate, not a measurement: {seconds(estimate)} a run on a device of "
            f"{assumed.flops['float32'] / 1e12:g} TFLOP/s and {assumed.memory_bytes_a_second / 1e9:g} GB/s, which is "
            "assumed, as OpenCL does not tell either (docs/gpu-model.md)"
        )
    return executable


def load_executable(parts: Mapping[str, Path | Array], manifest: Mapping[str, Any]) -> DeviceExecutable:
    """From verified files on disk; the weights may be an array.

    Raises:
        ArtifactError: the manifest is not one of this backend's, or a part is missing.
    """
    try:
        saved = read_saved(parts, manifest)
        source = parts[_SOURCE]
        return made(saved, source.read_text(encoding="utf-8"), str(manifest["device"]))  # type: ignore[union-attr]
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"the manifest does not describe a plan for OpenCL ({error!r}); save the model again"
        ) from error
