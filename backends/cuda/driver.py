"""CUDA's driver interface, called through ctypes: a device as the runtime asks for one.

Only NVIDIA's driver is needed. All commands go to the default stream, which runs them in order.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.cuda.calls import ADDRESS, Calls, CudaError
from backends.gpu.interface import Argument, Held, Queue
from backends.gpu.program import Instruction, Program
from optimizer.errors import CompileError, ExecutionError, TargetError
from optimizer.nvidia import capability, driver
from optimizer.text import size

__all__ = ["CudaCode", "CudaDevice", "CudaError", "CudaQueue", "Image", "opened"]

Array = npt.NDArray[Any]

_OUT_OF_MEMORY = 2
"""CUDA_ERROR_OUT_OF_MEMORY."""
_LEAST = 64
"""Bytes: no device makes an empty buffer."""
_LOG_BYTES = 8192
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6
"""CUjit_option: where the driver's compiler writes, and how much."""
_MILLISECONDS = 1e-3

_OF_THIS_THREAD = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: what other threads do meanwhile is their business."""
_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: what others start in the default stream meanwhile does not wait for this one, and may not
while it is captured."""
_STREAM = 8
"""Position of the stream among the arguments of `cuLaunchKernel`."""
_NUMBERS = {np.int32: ctypes.c_int32, np.int64: ctypes.c_int64, np.uint32: ctypes.c_uint32, np.uint64: ctypes.c_uint64}


@dataclass(frozen=True)
class Image:
    """A program for a device.

    Attributes:
        architecture: as `sm_80`.
        cubin: its code.
        ptx: the same before the choice of registers, which the driver translates for later architectures.
        resources: what each kernel takes, as `backends.cuda.compiler.Resources` has it.
    """

    architecture: str
    cubin: bytes
    ptx: bytes
    resources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def best(self, found: tuple[int, int], name: str) -> bytes:
        """What a device of that compute capability runs.

        Raises:
            TargetError: the device is older than the code.
        """
        major, minor = divmod(int(self.architecture.removeprefix("sm_")), 10)
        if found < (major, minor):
            raise TargetError(
                f"the model was compiled for {self.architecture}, {name} has compute capability {found[0]}.{found[1]}; "
                "compile it again with target='cuda' there, or name an older architecture"
            )
        return self.cubin if found[0] == major else self.ptx + b"\0"


class _Memory:
    """A buffer; given back when nothing refers to it."""

    def __init__(self, device: CudaDevice, nbytes: int) -> None:
        address = ADDRESS()
        device.calls("cuMemAlloc_v2", ctypes.byref(address), max(nbytes, _LEAST))
        self.address = int(address.value)
        weakref.finalize(self, _given_back, device, self.address).atexit = False


def _given_back(device: CudaDevice, address: int) -> None:
    device.enter()  # this may be any thread
    device.calls("cuMemFree_v2", address)


class _Graph:
    """Recorded calls as one command, and the calls, which hold the buffers."""

    def __init__(self, device: CudaDevice, stream: ctypes.c_void_p, held: Sequence[_Call]) -> None:
        self._held = list(held)
        calls = device.calls
        calls("cuStreamBeginCapture_v2", stream, _OF_THIS_THREAD)
        graph = ctypes.c_void_p()
        try:
            for call in held:
                calls("cuLaunchKernel", *call.launch[:_STREAM], stream, *call.launch[_STREAM + 1 :])
        except CudaError:
            with suppress(CudaError):  # the first error is the one to tell
                calls("cuStreamEndCapture", stream, ctypes.byref(graph))
            raise
        calls("cuStreamEndCapture", stream, ctypes.byref(graph))
        try:
            self.handle = calls.pointer("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            calls("cuGraphDestroy", graph)
        weakref.finalize(self, _forgotten, device, self.handle).atexit = False


def _forgotten(device: CudaDevice, graph: ctypes.c_void_p) -> None:
    device.enter()
    device.calls("cuGraphExecDestroy", graph)


class CudaQueue:
    """The default stream; see `backends.gpu.interface.Queue`."""

    def __init__(self, device: CudaDevice, *, timed: bool) -> None:
        self._device, self._calls, self._timed = device, device.calls, timed
        self._recorder: ctypes.c_void_p | None = None

    def write(self, to: Held, data: Array) -> None:
        """See `Queue.write`."""
        self._calls("cuMemcpyHtoD_v2", to.buffer.address + to.offset, data.ctypes.data, data.nbytes)

    def read(self, data: Array, source: Held) -> None:
        """See `Queue.read`."""
        self._calls("cuMemcpyDtoH_v2", data.ctypes.data, source.buffer.address + source.offset, data.nbytes)

    def copy(self, to: Held, source: Held, nbytes: int) -> None:
        """See `Queue.copy`."""
        self._calls("cuMemcpyDtoD_v2", to.buffer.address + to.offset, source.buffer.address + source.offset, nbytes)

    def start(self, call: Any) -> Any:
        """See `Queue.start`; two events of a queue that takes times."""
        begin = self._event() if self._timed else None
        self._calls("cuLaunchKernel", *call.launch)
        return None if begin is None else (begin, self._event())

    def record(self, calls: Sequence[_Call]) -> _Graph:
        """See `Queue.record`; the default stream cannot be recorded, so that another one is."""
        if self._recorder is None:
            self._recorder = self._calls.pointer("cuStreamCreate", _NON_BLOCKING)
        return _Graph(self._device, self._recorder, calls)

    def replay(self, recorded: _Graph) -> None:
        """See `Queue.replay`."""
        self._calls("cuGraphLaunch", recorded.handle, None)

    def _event(self) -> ctypes.c_void_p:
        event = self._calls.pointer("cuEventCreate", 0)
        self._calls("cuEventRecord", event, None)
        return event

    def finish(self) -> None:
        """See `Queue.finish`."""
        self._calls("cuCtxSynchronize")


class CudaDevice:
    """See `backends.gpu.interface.Device`: the first GPU, in the context that all of this process share."""

    failure: type[Exception] = CudaError

    def __init__(self, library: ctypes.CDLL) -> None:
        self.calls = Calls(library)
        text = ctypes.create_string_buffer(256)
        self.calls("cuDeviceGetName", text, len(text), 0)
        self.name = text.value.decode(errors="replace")
        self.capability = capability(library, 0)
        self._context = self.calls.pointer("cuDevicePrimaryCtxRetain", 0)
        self.queue: Queue = CudaQueue(self, timed=False)
        self.timed: Queue = CudaQueue(self, timed=True)

    def enter(self) -> None:
        """See `Device.enter`."""
        self.calls("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> _Memory:
        """See `Device.allocate`."""
        try:
            return _Memory(self, nbytes)
        except CudaError as error:
            if error.status != _OUT_OF_MEMORY:
                raise
            raise ExecutionError(
                f"the device {self.name!r} has no room for a buffer of {size(nbytes)} ({error}); "
                "use smaller inputs, or optimize with a memory_budget"
            ) from error

    def seconds(self, event: Any) -> float:
        """See `Device.seconds`."""
        begin, end = event
        took = ctypes.c_float()
        self.calls("cuEventElapsedTime", ctypes.byref(took), begin, end)
        self.calls("cuEventDestroy_v2", begin)
        self.calls("cuEventDestroy_v2", end)
        return took.value * _MILLISECONDS


@dataclass(frozen=True)
class _Call:
    """The arguments of `cuLaunchKernel`, and what they point to.

    Attributes:
        launch: them.
        held: the parameters' values, and the buffers.
    """

    launch: tuple[Any, ...]
    held: tuple[Any, ...]


class CudaCode:
    """See `backends.gpu.interface.Code`.

    Raises:
        CompileError: the driver does not take the code.
    """

    def __init__(self, device: CudaDevice, image: bytes) -> None:
        self._calls = device.calls
        self._functions: dict[str, ctypes.c_void_p] = {}
        if not image:
            return
        log = ctypes.create_string_buffer(_LOG_BYTES)
        options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        try:
            self._module = self._calls.pointer("cuModuleLoadDataEx", image, 2, options, values)
        except CudaError as error:
            words = log.value.decode(errors="replace").strip()[:300]
            raise CompileError(f"the driver of {device.name!r} refuses the code: {error}; {words}") from error
        weakref.finalize(self, _unloaded, device, self._module).atexit = False

    def call(self, instruction: Instruction, arguments: Sequence[Argument], grid: Sequence[int]) -> _Call:
        """The function with a pointer to each parameter, as the driver takes them."""
        values: list[Any] = []
        for argument in arguments:
            if isinstance(argument, tuple):
                held, _ = argument
                values.append(ADDRESS(held.buffer.address + held.offset))
            else:
                values.append(_NUMBERS[type(argument)](int(argument)))
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        function = self._function(instruction.entry)
        launch = (function, *grid, *instruction.block, 0, None, pointers, None)
        return _Call(launch, (values, arguments, self))

    def _function(self, entry: str) -> ctypes.c_void_p:
        if entry not in self._functions:
            self._functions[entry] = self._calls.pointer("cuModuleGetFunction", self._module, entry.encode())
        return self._functions[entry]


def _unloaded(device: CudaDevice, module: ctypes.c_void_p) -> None:
    device.enter()
    device.calls("cuModuleUnload", module)


_device = cache(CudaDevice)


def opened(program: Program, image: Image) -> tuple[CudaDevice, CudaCode]:
    """The first GPU (`CUDA_VISIBLE_DEVICES` says which one that is), and the program on it.

    Raises:
        TargetError: there is no GPU, or it is older than the code.
        CompileError: the driver does not take the code.
    """
    del program  # its blocks keep within what every architecture has
    device = _device(driver())
    device.enter()
    return device, CudaCode(device, image.best(device.capability, device.name) if image.cubin else b"")
