"""Run a plan on a device: its routines on one queue, fallback partitions in ONNX Runtime on the host between them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.gpu.interface import Argument, Code, Device, Held, Queue
from backends.gpu.memory import Growing, Tensor
from backends.gpu.program import Instruction, Place, Program
from backends.relax.packing import element_type
from backends.relax.plan import RELAX, Plan, Step
from backends.relax.runtime import Partition, demand, last_uses, learn_sizes, run_partition
from backends.relax.size_value import evaluate, with_derived
from optimizer.errors import ExecutionError

__all__ = ["DeviceMachine", "Opened"]

Array = npt.NDArray[Any]
Timed = Callable[[str, Any], None]
"""Told of each kernel that was started: its name, and the event of its end."""

Opened = Callable[[], tuple[Device, Code]]
"""Opens the device and brings the program there."""

_FAULT_BYTES = 4
_MOST_BLOCKS = (1 << 31) - 1
"""Along an axis of the grid: kernels count blocks in 32 bits."""
_RECORDED_RUN = 2
"""Of the same sizes: what runs once is not worth a recording."""
_INDICES: dict[str, type[np.integer[Any]]] = {
    "int32": np.int32,
    "int64": np.int64,
    "uint32": np.uint32,
    "uint64": np.uint64,
}


@dataclass
class _Laid:
    """A routine for some sizes.

    Attributes:
        sizes: the sizes.
        inputs: where they are brought.
        starts: functions with their arguments.
        results: where they lie.
        runs: how often it ran.
        recorded: the starts in parts, behind each of which the host looks at something, and what replays a part.
    """

    sizes: Mapping[str, int]
    inputs: list[Held]
    starts: list[tuple[Instruction, Any]]
    results: list[Tensor]
    runs: int = 0
    recorded: list[tuple[Any, list[tuple[Instruction, Any]]]] = field(default_factory=list)


class DeviceMachine:
    """The program and the weights on a device, from the first run on.

    Args:
        plan: what runs.
        program: the routines.
        weights: the weight buffer.
        opened: opens the device.
        say: is told what a user should know.
    """

    def __init__(
        self, plan: Plan, program: Program, weights: Array, opened: Opened, say: Callable[[str], None]
    ) -> None:
        self._say = say
        self.plan = plan
        self.program = program
        self._open = opened
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
            device, code = self._open()
            device.enter()
            self._loaded = _Loaded(device, code, self.plan, self.program, self._host_weights, self._say)
        self._loaded.device.enter()
        return self._loaded

    def seconds(self, event: Any) -> float:
        """How long a kernel took of which a run with `timed` told."""
        return self.load().device.seconds(event)

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
            try:
                outputs = self._run(loaded, environment, sizes, partitions, timed)
            except loaded.device.failure as error:
                raise ExecutionError(f"the device {loaded.device.name!r} fails: {error}") from error
            self.sizes = sizes
        given = {id(array) for array in inputs}
        return [a.copy() if id(a) in given and isinstance(a, np.ndarray) else a for a in outputs]

    def _run(
        self,
        loaded: _Loaded,
        environment: dict[str, Any],
        sizes: dict[str, int],
        partitions: Mapping[str, Partition],
        timed: Timed | None,
    ) -> list[Any]:
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
        outputs = [loaded.on_host(environment[v.name], queue) for v in self.plan.outputs]
        queue.finish()
        return outputs


class _Loaded:
    """What is on the device."""

    def __init__(
        self, device: Device, code: Code, plan: Plan, program: Program, weights: Array, say: Callable[[str], None]
    ) -> None:
        self._recordable = True
        self._say = say
        self.device = device
        self.plan = plan
        self.program = program
        self.code = code
        self.arena = Growing(device)
        self.scratch: dict[int, Growing] = {}
        self.own: dict[tuple[int, int], Growing] = {}
        self.inputs: dict[tuple[int, int], Growing] = {}
        self.faults = Held(device.allocate(_FAULT_BYTES))
        self.zero = np.zeros(_FAULT_BYTES, np.uint8)
        device.queue.write(self.faults, self.zero)
        self.weights = [self._uploaded(weights[w.offset : w.offset + _bytes(w.shape, w.dtype)]) for w in plan.weights]
        self.constants = [self._uploaded(np.frombuffer(bytes.fromhex(c.data), np.uint8)) for c in program.constants]
        self._laid: dict[int, _Laid] = {}

    def run(
        self, index: int, step: Step, taken: Sequence[Any], sizes: Mapping[str, int], queue: Queue, timed: Timed | None
    ) -> list[Tensor]:
        """One routine; its results stay on the device."""
        laid = self._laid.get(index)
        if laid is None or laid.sizes != sizes:
            laid = self._lay_out(index, step, sizes)
        for held, value in zip(laid.inputs, taken, strict=True):
            self._bring(held, value, queue)
        laid.runs += 1
        if timed is None and laid.runs == _RECORDED_RUN and self._recordable:
            self._record(laid, queue)
        if timed is None and laid.recorded:
            self._replay(laid, queue)
            return laid.results
        for instruction, call in laid.starts:
            event = queue.start(call)
            if timed is not None:
                timed(instruction.kernel, event)
            if instruction.demands:
                self._check_demands(instruction, queue)
        return laid.results

    def _record(self, laid: _Laid, queue: Queue) -> None:
        """Record what can be started as one command: its sizes came twice, and may come again."""
        parts: list[list[tuple[Instruction, Any]]] = [[]]
        for start in laid.starts:
            parts[-1].append(start)
            if start[0].demands:
                parts.append([])
        try:
            found = [
                (queue.record([call for _, call in part]) if len(part) > 1 else None, part) for part in parts if part
            ]
        except self.device.failure as error:
            self._recordable = False
            self._say(f"kernels are started one by one, as the device {self.device.name!r} records none: {error}")
            return
        if any(recorded is not None for recorded, _ in found):
            laid.recorded = found

    def _replay(self, laid: _Laid, queue: Queue) -> None:
        for recorded, part in laid.recorded:
            if recorded is not None:
                queue.replay(recorded)
            else:
                for _, call in part:
                    queue.start(call)
            if part[-1][0].demands:
                self._check_demands(part[-1][0], queue)

    def on_host(self, value: Any, queue: Queue) -> Any:
        """What lies on the device, copied; anything else as it is."""
        return value.read(queue) if isinstance(value, Tensor) else value

    def _bring(self, held: Held, value: Any, queue: Queue) -> None:
        if value.nbytes == 0:
            return
        if isinstance(value, Tensor):
            queue.copy(held, value.held, value.nbytes)
        else:
            queue.write(held, np.ascontiguousarray(value).reshape(-1).view(np.uint8))

    def _check_demands(self, instruction: Instruction, queue: Queue) -> None:
        """Wait for the kernel, and raise what it found wrong, before others work with that."""
        found = np.empty(_FAULT_BYTES, np.uint8)
        queue.read(found, self.faults)
        if number := int(found.view(np.int32)[0]):
            queue.write(self.faults, self.zero)
            raise ExecutionError(instruction.demands[number - 1])

    def _uploaded(self, flat: Array) -> Any:
        buffer = self.device.allocate(flat.nbytes)
        if flat.nbytes:
            self.device.queue.write(Held(buffer), np.ascontiguousarray(flat))
        return buffer

    def _lay_out(self, index: int, step: Step, sizes: Mapping[str, int]) -> _Laid:
        """Decide where each tensor lies, and set the arguments of each start."""
        known = with_derived(self.plan.derived, sizes)
        for check in step.checks:
            demand(check, known)
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
            "faults": [self.faults],
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
    ) -> tuple[Instruction, Any] | None:
        """The function with its arguments; `None` where it has no block to run."""
        grid = [evaluate(extent, sizes) for extent in instruction.grid]
        if 0 in grid:
            return None
        if max(grid) > _MOST_BLOCKS:
            raise ExecutionError(
                f"{instruction.kernel} would start {max(grid):,} blocks of threads, a device counts {_MOST_BLOCKS:,}; "
                "use smaller inputs"
            )
        arguments: list[Argument] = [
            _INDICES[kind](evaluate(what, sizes)) if isinstance(kind, str) else (_at(places, what), kind)
            for what, kind in instruction.arguments
        ]
        return instruction, self.code.call(instruction, arguments, grid)


def _at(places: Mapping[str, list[Held]], place: Place) -> Held:
    return places[place[0]][place[1]]


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * element_type(dtype).itemsize
