"""A compiled plan and its CUDA code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from backends.cuda.driver import Image, opened
from backends.gpu.executable import DeviceExecutable, Saved, read_saved
from optimizer.errors import ArtifactError
from optimizer.gpus import GPUS
from optimizer.text import seconds

__all__ = ["load_executable", "made"]

Array = npt.NDArray[Any]

_CUBIN, _PTX = "kernels.cubin", "kernels.ptx"


def made(saved: Saved, image: Image) -> DeviceExecutable:
    """With its code; the device is opened when the model first runs."""
    code = {_CUBIN: image.cubin, _PTX: image.ptx}
    opens = partial(opened, saved.program, image)
    facts = {"architecture": image.architecture, "resources": dict(image.resources)}
    executable = DeviceExecutable("cuda", saved, code, facts, opens)
    estimate = saved.program.estimated_seconds
    if estimate is not None:
        where = GPUS[image.architecture].device
        executable.notes.append(
            f"estimate, not a measurement: {seconds(estimate)} a run on {where} (docs/gpu-model.md)"
        )
    return executable


def load_executable(parts: Mapping[str, Path | Array], manifest: Mapping[str, Any]) -> DeviceExecutable:
    """From verified files on disk; the weights may be an array.

    Raises:
        ArtifactError: the manifest is not one of this backend's, or a part is missing.
    """
    try:
        saved = read_saved(parts, manifest)
        cubin, ptx = (parts[name].read_bytes() for name in (_CUBIN, _PTX))  # type: ignore[union-attr]
        return made(saved, Image(str(manifest["architecture"]), cubin, ptx, dict(manifest["resources"])))
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"the manifest does not describe a plan for CUDA ({error!r}); save the model again"
        ) from error
