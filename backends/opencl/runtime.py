"""Run a plan on a device: its routines on one queue, fallback partitions in ONNX Runtime on the host between them."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.gpu.program import Instruction, Place, Program
from backends.opencl.device import Device, open_device
from backends.opencl.memory import Growing, Held, Tensor, allocated
from backends.relax.packing import element_type
from backends.relax.plan import RELAX, Plan, Step
from backends.relax.runtime import Partition, demand, last_uses, learn_sizes, run_partition
from backends.relax.size_value import evaluate
from optimizer.errors import CompileError, ExecutionError, TargetError
from optimizer.text import size

__all__ = ["DeviceMachine"]

Array = npt.NDArray[Any]
Timed = Callable[[str, Any], None]
"""Told of each kernel that was started: its name, and the event of its end."""

_INDICES = {"int32": np.int32, "int64": np.int64, "uint32": np.uint32, "uint64": np.uint64}


@dataclass
class _Start:
    """One device function with its arguments set; a kernel does not keep them alive."""

    instruction: Instruction
    kernel: Any
    arguments: list[Any]
    total: tuple[int, ...]
    block: tuple[int, ...]


@dataclass
class _Laid:
    """A routine for some sizes."""

    sizes: Mapping[str, int]
    inputs: list[Held]
    starts: list[_Start]
    results: list[Tensor]


class DeviceMachine:
    """The program and the weights on a device, from the first run on.

    Args:
        plan: what runs.
        program: the routines.
        source: the program's text.
        weights: the weight buffer.
        wanted: which device; see `open_device`.
    """

    def __init__(self, plan: Plan, program: Program, source: str, weights: Array, wanted: str = "") -> None:
        self.plan = plan
        self.program = program
        self.source = source
        self.wanted = wanted
        self._host_weights = weights
        self._lock = threading.Lock()
        self._last_use = last_uses(plan)
        self._loaded: _Loaded | None = None
        self.sizes: dict[str, int] | None = None
        """The symbolic sizes of the last run."""

    @property
    def arena_bytes(self) -> int:
        """Length of the arena; 0 before the first run."""
        return 0 if self._loaded is None else self._loaded.arena.bytes

    def load(self) -> _Loaded:
        """Open the device, build the program and bring the weights there, once.

        Raises:
            TargetError: there is no device, or it cannot run the program.
        """
        if self._loaded is None:
            device = open_device(self.wanted)
            _check(device, self.program)
            self._loaded = _Loaded(device, _built(device, self.source), self.plan, self.program, self._host_weights)
        return self._loaded

    def run(
        self, inputs: Sequence[Array], partitions: Mapping[str, Partition], timed: Timed | None = None
    ) -> list[Any]:
        """Compute the outputs of the graph.

        Args:
            inputs: one array for each input of the plan.
            partitions: the fallback partitions, by entry.
            timed: is told of each kernel.
        """
        environment: dict[str, Any] = {v.name: a for v, a in zip(self.plan.inputs, inputs, strict=True)}
        sizes: dict[str, int] = {}
        for value, array in zip(self.plan.inputs, inputs, strict=True):
            learn_sizes(sizes, value, array)
        with self._lock:
            loaded = self.load()
            queue = loaded.device.queue if timed is None else loaded.device.timed
            for index, step in enumerate(self.plan.steps):
                taken = [environment[v.name] for v in step.inputs]
                results: Sequence[Any]
                if step.engine == RELAX:
                    results = loaded.run(index, step, taken, sizes, queue, timed)
                else:
                    arrays = [loaded.on_host(each, queue) for each in taken]
                    results = run_partition(step, arrays, partitions[step.entry], None)
                for value, result in zip(step.outputs, results, strict=True):
                    environment[value.name] = result
                    learn_sizes(sizes, value, result)
                for name in self._last_use[index]:
                    environment.pop(name, None)
            self.sizes = sizes
            outputs = [loaded.on_host(environment[v.name], queue) for v in self.plan.outputs]
            queue.finish()
        given = {id(array) for array in inputs}
        return [a.copy() if id(a) in given and isinstance(a, np.ndarray) else a for a in outputs]


class _Loaded:
    """What is on the device."""

    def __init__(self, device: Device, built: Any, plan: Plan, program: Program, weights: Array) -> None:
        self.device = device
        self.plan = plan
        self.program = program
        self.built = built
        self.arena = Growing(device)
        self.scratch: dict[int, Growing] = {}
        self.own: dict[tuple[int, int], Growing] = {}
        self.inputs: dict[tuple[int, int], Growing] = {}
        self.faults = allocated(device, 4)
        self.zero = np.zeros(1, np.int32)
        device.cl.enqueue_copy(device.queue, self.faults, self.zero)
        self.weights = [self._uploaded(weights[w.offset : w.offset + _bytes(w.shape, w.dtype)]) for w in plan.weights]
        self.constants = [self._uploaded(np.frombuffer(bytes.fromhex(c.data), np.uint8)) for c in program.constants]
        self._laid: dict[int, _Laid] = {}

    def run(
        self, index: int, step: Step, taken: Sequence[Any], sizes: Mapping[str, int], queue: Any, timed: Timed | None
    ) -> list[Tensor]:
        """One routine; its results stay on the device."""
        laid = self._laid.get(index)
        if laid is None or laid.sizes != sizes:
            laid = self._lay_out(index, step, sizes)
        for held, value in zip(laid.inputs, taken, strict=True):
            self._bring(held, value, queue)
        enqueue = self.device.cl.enqueue_nd_range_kernel
        try:
            for start in laid.starts:
                event = enqueue(queue, start.kernel, start.total, start.block)
                if timed is not None:
                    timed(start.instruction.kernel, event)
                if start.instruction.demands:
                    self._check_demands(start.instruction, queue)
        except self.device.cl.Error as error:
            raise ExecutionError(f"the device {self.device.name!r} fails: {error}") from error
        return laid.results

    def on_host(self, value: Any, queue: Any) -> Any:
        """What lies on the device, copied; anything else as it is."""
        return value.read(self.device, queue) if isinstance(value, Tensor) else value

    def _bring(self, held: Held, value: Any, queue: Any) -> None:
        if value.nbytes == 0:
            return
        if isinstance(value, Tensor):
            source, place = value.held, held.offset
            self.device.cl.enqueue_copy(
                queue, held.buffer, source.buffer, src_offset=source.offset, dst_offset=place, byte_count=value.nbytes
            )
            return
        flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
        self.device.cl.enqueue_copy(queue, held.buffer, flat, dst_offset=held.offset)

    def _check_demands(self, instruction: Instruction, queue: Any) -> None:
        """Wait for the kernel, and raise what it found wrong, before others work with that."""
        found = np.empty(1, np.int32)
        self.device.cl.enqueue_copy(queue, found, self.faults)
        if found[0]:
            self.device.cl.enqueue_copy(queue, self.faults, self.zero)
            raise ExecutionError(instruction.demands[int(found[0]) - 1])

    def _uploaded(self, flat: Array) -> Any:
        buffer = allocated(self.device, flat.nbytes)
        if flat.nbytes:
            self.device.cl.enqueue_copy(self.device.queue, buffer, np.ascontiguousarray(flat))
        return buffer

    def _lay_out(self, index: int, step: Step, sizes: Mapping[str, int]) -> _Laid:
        """Decide where each tensor lies, and set the arguments of each start."""
        for check in step.checks:
            demand(check, sizes)
        known = {**sizes, **{name: evaluate(f, sizes) for name, f in self.plan.derived.items()}}
        memory, routine = step.memory, self.program.routines[step.entry]
        placement = memory.placement(memory.room(memory.lengths(known)))
        self.device.queue.finish()
        self.device.timed.finish()
        if self.arena.reserve(placement.bytes):
            self._laid.clear()
        arena = self.arena.buffer
        inputs = []
        for number, (slot, value) in enumerate(zip(memory.inputs, step.inputs, strict=True)):
            if slot >= 0:
                inputs.append(Held(arena, placement.offsets[slot]))
            else:
                shape = [evaluate(dim, known) for dim in value.shape or ()]
                inputs.append(Held(self._buffer(self.inputs, (index, number), _bytes(shape, value.dtype))))
        for instruction in routine.instructions:
            for number, nbytes in enumerate(instruction.scratch):
                self._buffer(self.scratch, number, evaluate(nbytes, known))
        places = {
            "memory": [Held(arena, placement.offsets[b.slot] + b.offset) for b in memory.buffers],
            "input": inputs,
            "weight": [Held(self.weights[position]) for position in step.weights],
            "own": [
                Held(self._buffer(self.own, (index, number), evaluate(own.bytes, known)))
                for number, own in enumerate(routine.own)
            ],
            "constant": [Held(buffer) for buffer in self.constants],
            "faults": [Held(self.faults)],
            "scratch": [Held(self.scratch[number].buffer) for number in range(len(self.scratch))],
        }
        starts = [start for each in routine.instructions if (start := self._start(each, places, known)) is not None]
        results = [
            Tensor(_at(places, result.place), tuple(evaluate(d, known) for d in result.shape), value.dtype)
            for result, value in zip(routine.results, step.outputs, strict=True)
        ]
        self._laid[index] = _Laid(dict(sizes), inputs, starts, results)
        return self._laid[index]

    def _buffer(self, table: dict[Any, Growing], key: Any, nbytes: int) -> Any:
        """A buffer of at least that length; layouts with a shorter one of the same key are forgotten."""
        growing = table.setdefault(key, Growing(self.device))
        if growing.reserve(nbytes):
            self._laid.clear()
        return growing.buffer

    def _start(
        self, instruction: Instruction, places: Mapping[str, list[Held]], sizes: Mapping[str, int]
    ) -> _Start | None:
        """The function with its arguments; `None` where it has no block to run."""
        grid = [evaluate(extent, sizes) for extent in instruction.grid]
        if 0 in grid:
            return None
        kernel = self.device.cl.Kernel(self.built, instruction.entry)
        arguments: list[Any] = []
        for what, kind in instruction.arguments:
            if isinstance(kind, str):
                arguments.append(_INDICES[kind](evaluate(what, sizes)))
            else:
                held = _at(places, what)
                arguments += [held.buffer, np.int64(held.offset // kind)]
        kernel.set_args(*arguments)
        total = tuple(blocks * threads for blocks, threads in zip(grid, instruction.block, strict=True))
        return _Start(instruction, kernel, arguments, total, tuple(instruction.block))


def _at(places: Mapping[str, list[Held]], place: Place) -> Held:
    return places[place[0]][place[1]]


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * element_type(dtype).itemsize


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
