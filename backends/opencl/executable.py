"""A compiled plan on a device as an `Executable`: run, profile, save and load."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.gpu.program import Program
from backends.opencl.runtime import DeviceMachine
from backends.relax.executable import WEIGHTS, checked_weights, notes_of, session_of, spec_of
from backends.relax.memory_use import memory_use
from backends.relax.plan import ONNXRUNTIME, Plan
from backends.relax.runtime import Partition
from backends.relax.size_value import evaluate
from optimizer.activation_memory import ActivationMemory
from optimizer.errors import ArtifactError
from optimizer.executable import Executable, KernelTime, Part

__all__ = ["OpenClExecutable", "load_executable"]

Array = npt.NDArray[Any]

_SOURCE = "kernels.cl"
_NANOSECONDS = 1e-9


class OpenClExecutable:
    """See `optimizer.executable.Executable`.

    Args:
        plan: the steps.
        program: what they do on the device.
        source: the program's text.
        weights: the packed weights.
        partitions: serialized models of the fallback partitions, by entry.
        wanted: which device; see `backends.opencl.device.open_device`.
    """

    backend = "opencl"

    def __init__(
        self,
        plan: Plan,
        program: Program,
        source: str,
        weights: Array,
        partitions: Mapping[str, bytes],
        wanted: str = "",
    ) -> None:
        self.inputs = tuple(spec_of(v) for v in plan.inputs)
        self.outputs = tuple(spec_of(v) for v in plan.outputs)
        self.notes = notes_of(plan)
        self._plan = plan
        self._program = program
        self._source = source
        self._weights = weights
        self._partitions = dict(partitions)
        self._lock = threading.Lock()
        self._sessions: dict[int, dict[str, Partition]] = {}
        self._machine = DeviceMachine(plan, program, source, weights, wanted)

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
        sizes = {**(self._machine.sizes or {})}
        sizes |= {name: evaluate(formula, sizes) for name, formula in self._plan.derived.items()}
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
                median(sum(_seconds(event) for event in run.get(name, ())) for run in runs),
                len(runs[0][name]),
            )
            for name in runs[0]
        ]
        return sorted(rows, key=lambda row: -row.seconds)

    def parts(self) -> dict[str, Part]:
        """See `Executable.parts`."""
        files: dict[str, Part] = {f"{name}.onnx": data for name, data in self._partitions.items()}
        return {**files, _SOURCE: self._source.encode(), WEIGHTS: self._weights}

    def manifest(self) -> dict[str, object]:
        """See `Executable.manifest`."""
        plain = {"plan": self._plan.to_json(), "program": self._program.to_json(), "device": self._machine.wanted}
        result: dict[str, object] = json.loads(json.dumps(plain))
        return result


def _seconds(event: Any) -> float:
    return float(event.profile.end - event.profile.start) * _NANOSECONDS


def load_executable(parts: Mapping[str, Path | Array], manifest: Mapping[str, Any]) -> Executable:
    """From verified files on disk; the weights may be an array.

    Raises:
        ArtifactError: the manifest is not one of this backend's, or a part is missing.
    """
    try:
        plan, program = Plan.from_json(dict(manifest["plan"])), Program.from_json(dict(manifest["program"]))
        files = {name: part for name, part in parts.items() if isinstance(part, Path)}
        partitions = {s.entry: files[f"{s.entry}.onnx"].read_bytes() for s in plan.steps if s.engine == ONNXRUNTIME}
        source = files[_SOURCE].read_text(encoding="utf-8")
        weights = checked_weights(parts[WEIGHTS], plan.weight_bytes)
        wanted = str(manifest["device"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"the manifest does not describe a plan for OpenCL ({error!r}); save the model again"
        ) from error
    return OpenClExecutable(plan, program, source, np.asarray(weights), partitions, wanted)
