"""Buffers on a device."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.opencl.device import Device
from backends.relax.packing import element_type
from optimizer.errors import ExecutionError
from optimizer.text import size

__all__ = ["Growing", "Held", "Tensor", "allocated"]

Array = npt.NDArray[Any]

_LEAST = 64
"""Bytes: no device makes an empty buffer."""


@dataclass(frozen=True)
class Held:
    """Bytes in a buffer, from an offset on."""

    buffer: Any
    offset: int = 0


@dataclass(frozen=True)
class Tensor:
    """A tensor on the device.

    Attributes:
        held: where it lies.
        shape: its sizes.
        dtype: of its elements.
    """

    held: Held
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its length."""
        return prod(self.shape) * element_type(self.dtype).itemsize

    def read(self, device: Device, queue: Any) -> Array:
        """A copy on the host; waits for what computes it."""
        array = np.empty(self.nbytes, np.uint8)
        if array.size:
            device.cl.enqueue_copy(queue, array, self.held.buffer, src_offset=self.held.offset)
        result: Array = array.view(element_type(self.dtype)).reshape(self.shape)
        return result


def allocated(device: Device, nbytes: int) -> Any:
    """A buffer.

    Raises:
        ExecutionError: the device has not so much memory, or not in one piece.
    """
    most = int(device.handle.max_mem_alloc_size)
    if nbytes > most:
        raise ExecutionError(
            f"the device {device.name!r} gives at most {size(most)} in one buffer, {size(nbytes)} are needed; "
            "use smaller inputs, or optimize with a memory_budget"
        )
    try:
        return device.cl.Buffer(device.context, device.cl.mem_flags.READ_WRITE, max(nbytes, _LEAST))
    except device.cl.MemoryError as error:
        raise ExecutionError(
            f"the device {device.name!r} has no room for a buffer of {size(nbytes)} ({error}); "
            "use smaller inputs, or optimize with a memory_budget"
        ) from error


class Growing:
    """A buffer that is made anew when more is asked for; what was in it is lost then.

    Args:
        device: that has it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self.bytes = 0
        self.buffer: Any = None

    def reserve(self, nbytes: int) -> bool:
        """Make it at least so long; whether it is another buffer now."""
        if self.buffer is not None and nbytes <= self.bytes:
            return False
        self.buffer = None
        self.buffer = allocated(self._device, nbytes)
        self.bytes = nbytes
        return True
