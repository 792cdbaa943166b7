"""NVIDIA's driver library: whether this machine has a GPU, and which architecture it is.

Only the driver is asked (`libcuda.so.1`, which comes with it); the CUDA toolkit is not needed.
"""

from __future__ import annotations

import ctypes
from functools import cache

from optimizer.errors import TargetError
from optimizer.gpus import GPUS, Gpu

__all__ = ["LIBRARY", "capability", "detect_gpu", "driver", "nearest_gpu"]

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
"""CUdevice_attribute: of the compute capability."""


@cache
def _library(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    if status := library.cuInit(0):
        raise OSError(f"cuInit gives error {status}: no GPU that this driver knows")
    return library


def driver() -> ctypes.CDLL:
    """The driver library, initialized.

    Raises:
        TargetError: there is no driver, or no GPU.
    """
    try:
        library = _library(LIBRARY)
    except OSError as error:
        raise TargetError(f"no NVIDIA GPU here: {error}; a saved model runs where there is one") from error
    count = ctypes.c_int()
    if library.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise TargetError("no NVIDIA GPU here: the driver finds none; a saved model runs where there is one")
    return library


def capability(library: ctypes.CDLL, device: int) -> tuple[int, int]:
    """The compute capability of a device, as (8, 0)."""
    found = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if status := library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            raise TargetError(f"the CUDA driver does not tell a device's compute capability (error {status})")
        found.append(value.value)
    return found[0], found[1]


def nearest_gpu(major: int, minor: int) -> Gpu | None:
    """The newest known architecture whose code such a device runs, as it is or translated by the driver.

    `None` for what is older than all of them.
    """
    number = 10 * major + minor
    known = [gpu for name, gpu in GPUS.items() if name.startswith("sm_") and int(name[3:]) <= number]
    return max(known, key=lambda gpu: int(gpu.name[3:]), default=None)


def detect_gpu() -> Gpu | None:
    """The architecture of the first GPU; `None` where there is no driver or no GPU.

    Raises:
        TargetError: the GPU is older than every architecture that code is made for.
    """
    try:
        library = driver()
    except TargetError:
        return None
    major, minor = capability(library, 0)
    found = nearest_gpu(major, minor)
    if found is None:
        raise TargetError(
            f"the GPU has compute capability {major}.{minor}; code is made for 8.0 and later: use 'opencl'"
        )
    return found
