"""A compiled plan on a device as an `Executable`: run, profile, save and load."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.gpu.program import Program
from backends.gpu.runtime import DeviceMachine, Opened
from backends.relax.executable import WEIGHTS, checked_weights, notes_of, session_of, spec_of
from backends.relax.memory_use import memory_use
from backends.relax.plan import ONNXRUNTIME, Plan
from backends.relax.runtime import Partition
from backends.relax.size_value import evaluate, with_derived
from optimizer.activation_memory import ActivationMemory
from optimizer.executable import KernelTime, Part

__all__ = ["DeviceExecutable", "Saved", "read_saved"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Saved:
    """What every compiled model for a device is made of.

    Attributes:
        plan: the steps.
        program: what they do on the device.
        weights: the packed weights.
        partitions: serialized models of the fallback partitions, by entry.
    """

    plan: Plan
    program: Program
    weights: Array
    partitions: Mapping[str, bytes]


class DeviceExecutable:
    """See `optimizer.executable.Executable`.

    Args:
        backend: its name.
        saved: what runs.
        code: the program in the device's language or code, as parts of a file.
        facts: what `manifest` gives besides the plan and the program.
        opened: opens the device.
    """

    def __init__(
        self,
        backend: str,
        saved: Saved,
        code: Mapping[str, bytes],
        facts: Mapping[str, object],
        opened: Opened,
    ) -> None:
        self.backend = backend
        plan = saved.plan
        self.inputs = tuple(spec_of(v) for v in plan.inputs)
        self.outputs = tuple(spec_of(v) for v in plan.outputs)
        self.notes = notes_of(plan)
        self._plan = plan
        self._program = saved.program
        self._code = dict(code)
        self._facts = dict(facts)
        self._weights = saved.weights
        self._partitions = dict(saved.partitions)
        self._lock = threading.Lock()
        self._sessions: dict[int, dict[str, Partition]] = {}
        self._machine = DeviceMachine(plan, saved.program, saved.weights, opened, self.notes.append)

    def prepare(self, num_threads: int) -> dict[str, Partition]:
        """The fallback partitions, loaded for so many threads; the device has its own.

        Raises:
            UnsupportedError: ONNX Runtime cannot load one of them.
        """
        with self._lock:
            if num_threads not in self._sessions:
                self._sessions[num_threads] = {
                    name: session_of(name, data, num_threads) for name, data in self._partitions.items()
                }
            return self._sessions[num_threads]

    def run(self, inputs: Sequence[Array], num_threads: int) -> list[Array]:
        """See `Executable.run`."""
        return self._machine.run(inputs, self.prepare(num_threads))

    @property
    def memory(self) -> ActivationMemory | None:
        """See `Executable.memory`; all of it is the device's."""
        use = memory_use(self._plan, self._machine.sizes, 1, self._machine.arena_bytes)
        return None if use is None else dataclasses.replace(use, scratch=self._scratch_bytes())

    def _scratch_bytes(self) -> int:
        """What launches hand to each other; kernels run one after the other, and share it."""
        sizes = with_derived(self._plan.derived, self._machine.sizes or {})
        most: dict[int, int] = {}
        for routine in self._program.routines.values():
            for instruction in routine.instructions:
                for number, nbytes in enumerate(instruction.scratch):
                    most[number] = max(most.get(number, 0), evaluate(nbytes, sizes))
        return sum(most.values())

    def profile(self, inputs: Sequence[Array], num_threads: int, repeats: int) -> list[KernelTime]:
        """See `Executable.profile`; by the device's own clock, and without fallback partitions."""
        partitions = self.prepare(num_threads)
        self._machine.run(inputs, partitions)
        runs: list[dict[str, list[Any]]] = []
        for _ in range(repeats):
            events: dict[str, list[Any]] = defaultdict(list)
            self._machine.run(inputs, partitions, lambda name, event: events[name].append(event))  # noqa: B023
            runs.append(events)
        rows = [
            KernelTime(
                name,
                tuple(self._plan.kernels.get(name, ())),
                median(sum(self._machine.seconds(event) for event in run.get(name, ())) for run in runs),
                len(runs[0][name]),
            )
            for name in runs[0]
        ]
        return sorted(rows, key=lambda row: -row.seconds)

    def parts(self) -> dict[str, Part]:
        """See `Executable.parts`."""
        files: dict[str, Part] = {f"{name}.onnx": data for name, data in self._partitions.items()}
        return {**files, **self._code, WEIGHTS: self._weights}

    def manifest(self) -> dict[str, object]:
        """See `Executable.manifest`."""
        plain = {"plan": self._plan.to_json(), "program": self._program.to_json(), **self._facts}
        result: dict[str, object] = json.loads(json.dumps(plain))
        return result


def read_saved(parts: Mapping[str, Path | Array], manifest: Mapping[str, Any]) -> Saved:
    """From verified files on disk; the weights may be an array.

    Raises:
        KeyError, TypeError, AttributeError: the manifest is not of such a model, or a part is missing.
        ArtifactError: the weights are not those of the plan.
    """
    plan, program = Plan.from_json(dict(manifest["plan"])), Program.from_json(dict(manifest["program"]))
    files = {name: part for name, part in parts.items() if isinstance(part, Path)}
    partitions = {s.entry: files[f"{s.entry}.onnx"].read_bytes() for s in plan.steps if s.engine == ONNXRUNTIME}
    weights = checked_weights(parts[WEIGHTS], plan.weight_bytes)
    return Saved(plan, program, np.asarray(weights), partitions)
