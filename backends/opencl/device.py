"""The device that runs a program: found by name, opened once."""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from typing import Any

from optimizer.errors import TargetError

__all__ = ["Device", "devices", "open_device", "pyopencl"]

_INSTALL = "install a driver with OpenCL (such as the vendor's, or PoCL for a CPU: apt-get install pocl-opencl-icd)"


def pyopencl() -> Any:
    """The binding.

    Raises:
        TargetError: it is not installed.
    """
    try:
        return importlib.import_module("pyopencl")
    except ImportError as error:
        raise TargetError(f"running on OpenCL needs pyopencl ({error}): pip install 'tersor[opencl]'") from error


@dataclass(frozen=True)
class Device:
    """A device with its context, and two queues of which one takes the time of each kernel.

    Attributes:
        cl: the binding.
        handle: the device.
        context: all buffers and programs are made in it.
        queue: runs commands in order.
        timed: the same, and keeps when each began and ended.
    """

    cl: Any
    handle: Any
    context: Any
    queue: Any
    timed: Any

    @property
    def name(self) -> str:
        """As the driver tells it."""
        return str(self.handle.name).strip()


def devices() -> list[Any]:
    """All devices, GPUs first.

    Raises:
        TargetError: there is no platform, or none has a device.
    """
    cl = pyopencl()
    try:
        found = [device for platform in cl.get_platforms() for device in _of(cl, platform)]
    except cl.Error as error:  # the loader says that no platform is installed by an error
        raise TargetError(f"no OpenCL platform: {error}; {_INSTALL}") from error
    if not found:
        raise TargetError(f"no OpenCL device; {_INSTALL}")
    return sorted(found, key=lambda device: not device.type & cl.device_type.GPU)


def _of(cl: Any, platform: Any) -> list[Any]:
    try:
        return list(platform.get_devices())
    except cl.Error:  # a platform without a device says so by an error
        return []


_opened: dict[str, Device] = {}
_lock = threading.Lock()


def open_device(wanted: str = "") -> Device:
    """The device of that number or name; the first GPU, or else the first device, for the empty string.

    Raises:
        TargetError: there is none like that.
    """
    with _lock:
        if wanted not in _opened:
            cl, handle = pyopencl(), _choose(wanted)
            context = cl.Context([handle])
            timed = cl.CommandQueue(context, handle, cl.command_queue_properties.PROFILING_ENABLE)
            _opened[wanted] = Device(cl, handle, context, cl.CommandQueue(context, handle), timed)
        return _opened[wanted]


def _choose(wanted: str) -> Any:
    found = devices()
    names = [str(device.name).strip() for device in found]
    if not wanted:
        return found[0]
    if wanted.isdigit():
        if int(wanted) < len(found):
            return found[int(wanted)]
    else:
        for device, name in zip(found, names, strict=True):
            if wanted.lower() in name.lower():
                return device
    listed = ", ".join(f"{i}: {name}" for i, name in enumerate(names))
    raise TargetError(f"no OpenCL device {wanted!r}; there are {listed}")
