"""A device that pyopencl drives, as the runtime asks for one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.gpu.interface import Argument, Held, Queue
from backends.gpu.program import Instruction, Program
from backends.opencl.device import Device, open_device
from optimizer.errors import CompileError, ExecutionError, TargetError
from optimizer.text import size

__all__ = ["OpenClCode", "OpenClDevice", "OpenClQueue", "opened"]

Array = npt.NDArray[Any]

_LEAST = 64
"""Bytes: no device makes an empty buffer."""
_NANOSECONDS = 1e-9


def opened(program: Program, source: str, wanted: str) -> tuple[OpenClDevice, OpenClCode]:
    """The device, and the program in its code.

    Raises:
        TargetError: there is no device, or it lacks what the program needs.
        CompileError: the driver's compiler refuses the program.
    """
    device = open_device(wanted)
    _check(device, program)
    return OpenClDevice(device), OpenClCode(device, _built(device, source))


class OpenClQueue:
    """See `backends.gpu.interface.Queue`."""

    def __init__(self, cl: Any, queue: Any) -> None:
        self._cl, self._queue = cl, queue

    def write(self, to: Held, data: Array) -> None:
        """See `Queue.write`."""
        self._cl.enqueue_copy(self._queue, to.buffer, data, dst_offset=to.offset)

    def read(self, data: Array, source: Held) -> None:
        """See `Queue.read`."""
        self._cl.enqueue_copy(self._queue, data, source.buffer, src_offset=source.offset)

    def copy(self, to: Held, source: Held, nbytes: int) -> None:
        """See `Queue.copy`."""
        self._cl.enqueue_copy(
            self._queue, to.buffer, source.buffer, src_offset=source.offset, dst_offset=to.offset, byte_count=nbytes
        )

    def start(self, call: Any) -> Any:
        """See `Queue.start`."""
        kernel, _, total, block = call
        return self._cl.enqueue_nd_range_kernel(self._queue, kernel, total, block)

    def record(self, calls: Sequence[Any]) -> None:
        """See `Queue.record`; the standard has no such thing."""

    def replay(self, recorded: Any) -> None:
        """See `Queue.replay`.

        Raises:
            RuntimeError: always, since `record` gives nothing to replay.
        """
        raise RuntimeError("OpenCL records nothing that could be replayed")

    def finish(self) -> None:
        """See `Queue.finish`."""
        self._queue.finish()


class OpenClDevice:
    """See `backends.gpu.interface.Device`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.name = device.name
        self.failure: type[Exception] = device.cl.Error
        self.queue: Queue = OpenClQueue(device.cl, device.queue)
        self.timed: Queue = OpenClQueue(device.cl, device.timed)

    def enter(self) -> None:
        """Nothing: every call names its queue."""

    def allocate(self, nbytes: int) -> Any:
        """See `Device.allocate`."""
        cl, most = self._device.cl, int(self._device.handle.max_mem_alloc_size)
        if nbytes > most:
            raise ExecutionError(
                f"the device {self.name!r} gives at most {size(most)} in one buffer, {size(nbytes)} are needed; "
                "use smaller inputs, or optimize with a memory_budget"
            )
        try:
            return cl.Buffer(self._device.context, cl.mem_flags.READ_WRITE, max(nbytes, _LEAST))
        except cl.MemoryError as error:
            raise ExecutionError(
                f"the device {self.name!r} has no room for a buffer of {size(nbytes)} ({error}); "
                "use smaller inputs, or optimize with a memory_budget"
            ) from error

    def seconds(self, event: Any) -> float:
        """See `Device.seconds`."""
        return float(event.profile.end - event.profile.start) * _NANOSECONDS


class OpenClCode:
    """See `backends.gpu.interface.Code`."""

    def __init__(self, device: Device, built: Any) -> None:
        self._cl, self._built = device.cl, built

    def call(self, instruction: Instruction, arguments: Sequence[Argument], grid: Sequence[int]) -> Any:
        """The kernel, its arguments (which it does not keep alive), all threads, and those of a work-group."""
        kernel = self._cl.Kernel(self._built, instruction.entry)
        given: list[Any] = []
        for argument in arguments:
            if isinstance(argument, tuple):
                held, width = argument
                given += [held.buffer, np.int64(held.offset // width)]
            else:
                given.append(argument)
        kernel.set_args(*given)
        total = tuple(blocks * threads for blocks, threads in zip(grid, instruction.block, strict=True))
        return kernel, given, total, tuple(instruction.block)


def _check(device: Device, program: Program) -> None:
    """Hold what the program needs against what the device has.

    Raises:
        TargetError: it lacks something.
    """
    lacks = sorted(set(program.extensions) - set(str(device.handle.extensions).split()))
    if lacks:
        raise TargetError(f"the device {device.name!r} lacks {', '.join(lacks)}, which the model's types need")
    if program.threads > device.handle.max_work_group_size:
        raise TargetError(
            f"the device {device.name!r} has work-groups of at most {device.handle.max_work_group_size}, "
            f"{program.threads} are needed"
        )
    if program.shared_bytes > device.handle.local_mem_size:
        raise TargetError(
            f"the device {device.name!r} has {size(device.handle.local_mem_size)} of local memory, "
            f"{size(program.shared_bytes)} are needed"
        )


def _built(device: Device, source: str) -> Any:
    """The program in the device's code.

    Raises:
        CompileError: the driver's compiler refuses it.
    """
    if not source:
        return None
    cl = device.cl
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", cl.CompilerWarning)  # remarks of the driver's compiler
        try:
            return cl.Program(device.context, source).build()
        except cl.RuntimeError as error:
            told = [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
            raise CompileError(f"the compiler of {device.name!r} refuses the program: {told[0][:300]}") from error
