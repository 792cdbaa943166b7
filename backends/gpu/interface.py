"""What the runtime asks of a device, whatever drives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from backends.gpu.program import Instruction

__all__ = ["Argument", "Code", "Device", "Held", "Queue"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Held:
    """Bytes in a buffer, from an offset on."""

    buffer: Any
    offset: int = 0


Argument = tuple[Held, int] | np.generic
"""What a device function takes: where a tensor begins, with the bytes of an element, or a number."""


class Queue(Protocol):
    """Runs commands one after the other."""

    def write(self, to: Held, data: Array) -> None:
        """Bring an array of bytes to the device."""
        ...

    def read(self, data: Array, source: Held) -> None:
        """Fill an array of bytes from the device; waits for what computes it."""
        ...

    def copy(self, to: Held, source: Held, nbytes: int) -> None:
        """From one place on the device to another one."""
        ...

    def start(self, call: Any) -> Any:
        """Start what `Code.call` gave; gives what `Device.seconds` takes, if the queue takes times."""
        ...

    def record(self, calls: Sequence[Any]) -> Any | None:
        """What `replay` starts as one command; `None` where the device has no such thing. Nothing runs."""
        ...

    def replay(self, recorded: Any) -> None:
        """Start all that was recorded, with the arguments that it was recorded with."""
        ...

    def finish(self) -> None:
        """Wait until all is done."""
        ...


class Device(Protocol):
    """A device that was opened.

    Attributes:
        name: as the driver tells it.
        failure: the exceptions by which its queues tell of an error.
        queue: runs commands.
        timed: the same, and takes the time of each function.
    """

    name: str
    failure: type[Exception]
    queue: Queue
    timed: Queue

    def enter(self) -> None:
        """The calls that follow, from this thread, are about this device."""
        ...

    def allocate(self, nbytes: int) -> Any:
        """A buffer, which is given back when nothing refers to it.

        Raises:
            ExecutionError: the device has not so much memory, or not in one piece.
        """
        ...

    def seconds(self, event: Any) -> float:
        """How long what was started took, by the device's own clock; the queue has to be finished."""
        ...


class Code(Protocol):
    """A program on a device."""

    def call(self, instruction: Instruction, arguments: Sequence[Argument], grid: Sequence[int]) -> Any:
        """A function with all that it takes, for `Queue.start`."""
        ...
