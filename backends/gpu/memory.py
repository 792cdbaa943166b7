"""Buffers on a device."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.gpu.interface import Device, Held, Queue
from backends.relax.packing import element_type

__all__ = ["Growing", "Tensor"]

Array = npt.NDArray[Any]


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

    def read(self, queue: Queue) -> Array:
        """A copy on the host; waits for what computes it."""
        array = np.empty(self.nbytes, np.uint8)
        if array.size:
            queue.read(array, self.held)
        result: Array = array.view(element_type(self.dtype)).reshape(self.shape)
        return result


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
        self.buffer = self._device.allocate(nbytes)
        self.bytes = nbytes
        return True
