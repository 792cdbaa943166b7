"""A compiled plan as an `Executable`: run, profile, save and load."""

from __future__ import annotations

import json
import shutil
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.relax.memory_use import memory_use
from backends.relax.packing import ALIGNMENT
from backends.relax.plan import ONNXRUNTIME, RELAX, Plan, Value
from backends.relax.profiling import conditions, kernel_times, times_of_run
from backends.relax.runtime import Hook, Machine, Partition
from optimizer.activation_memory import ActivationMemory
from optimizer.errors import ArtifactError, TargetError, UnsupportedError
from optimizer.executable import Executable, KernelTime, Part, TensorSpec
from optimizer.large_pages import mapped
from optimizer.ort_session import OrtSession
from optimizer.tuning import Decision

Array = npt.NDArray[Any]

_LIBRARY = "kernels.so"
WEIGHTS = "weights.bin"
"""The part that may be mapped from where it is."""


class AbsentMachine:
    """Stands for code that another machine runs."""

    sizes: dict[str, int] | None = None
    arena_bytes = 0

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def run(
        self, inputs: Sequence[Array], num_threads: int, partitions: Mapping[str, Partition], hook: Hook | None = None
    ) -> list[Any]:
        """Refuse.

        Raises:
            TargetError: always.
        """
        raise TargetError(f"the model cannot run here: {self._reason}; save it, and load it where it can")


class RelaxExecutable:
    """See `optimizer.executable.Executable`.

    Args:
        backend: the name of the backend.
        library: the native module; `None` if every node is in a fallback partition.
        plan: the steps.
        weights: the packed weights.
        partitions: serialized models of the fallback partitions, by entry.
        folder: holds the library; removed when the executable goes.
        unusable: why this machine cannot run the library, "" if it can. It can be saved all the same.
    """

    def __init__(
        self,
        backend: str,
        library: Path | None,
        plan: Plan,
        weights: Array,
        partitions: Mapping[str, bytes],
        folder: Path | None = None,
        unusable: str = "",
    ) -> None:
        self.backend = backend
        self.inputs = tuple(spec_of(v) for v in plan.inputs)
        self.outputs = tuple(spec_of(v) for v in plan.outputs)
        self.notes = notes_of(plan)
        self._library = library
        self._plan = plan
        self._weights = weights
        self._partitions = dict(partitions)
        self._lock = threading.Lock()
        self._sessions: dict[int, dict[str, Partition]] = {}
        self._threads = 1
        self._machine = AbsentMachine(unusable) if unusable else Machine(library, plan, weights)
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, True)

    def prepare(self, num_threads: int) -> None:
        """Load the fallback partitions, if they are not loaded for so many threads.

        Raises:
            UnsupportedError: ONNX Runtime cannot load one of them.
        """
        with self._lock:
            self._threads = num_threads
            if num_threads not in self._sessions:
                self._sessions[num_threads] = {
                    name: session_of(name, data, num_threads) for name, data in self._partitions.items()
                }

    def run(self, inputs: Sequence[Array], num_threads: int) -> list[Array]:
        """See `Executable.run`."""
        self.prepare(num_threads)
        return self._machine.run(inputs, num_threads, self._sessions[num_threads])

    @property
    def memory(self) -> ActivationMemory | None:
        """See `Executable.memory`."""
        return memory_use(self._plan, self._machine.sizes, self._threads, self._machine.arena_bytes)

    def profile(self, inputs: Sequence[Array], num_threads: int, repeats: int) -> list[KernelTime]:
        """See `Executable.profile`; fallback partitions are one row each."""
        self.run(inputs, num_threads)
        here = conditions(self._plan, self._library, num_threads)

        def run(hook: Hook) -> None:
            self._machine.run(inputs, num_threads, self._sessions[num_threads], hook)

        return kernel_times(run, self._plan, here, repeats)

    @property
    def decisions(self) -> list[Decision]:
        """What was chosen for it where there are alternatives; nothing of one that was loaded."""
        return self._plan.decisions

    def kernel_seconds(self, inputs: Sequence[Array], num_threads: int) -> list[tuple[tuple[str, ...], float]]:
        """The nodes of each kernel and its seconds in one run."""
        self.prepare(num_threads)

        def run(hook: Hook) -> None:
            self._machine.run(inputs, num_threads, self._sessions[num_threads], hook)

        return times_of_run(run, self._plan)

    def parts(self) -> dict[str, Part]:
        """See `Executable.parts`."""
        files: dict[str, Part] = {f"{name}.onnx": data for name, data in self._partitions.items()}
        if self._library is not None:
            files[_LIBRARY] = self._library
        files[WEIGHTS] = self._weights
        return files

    def manifest(self) -> dict[str, object]:
        """See `Executable.manifest`."""
        result: dict[str, object] = json.loads(json.dumps(self._plan.to_json()))
        return result


def load_executable(backend: str, parts: Mapping[str, Path | Array], manifest: Mapping[str, object]) -> Executable:
    """From verified files on disk; the weights may be an array.

    Raises:
        ArtifactError: the manifest is not one of this backend's, or a part is missing.
    """
    try:
        plan = Plan.from_json(dict(manifest))
        files = {name: part for name, part in parts.items() if isinstance(part, Path)}
        partitions = {s.entry: files[f"{s.entry}.onnx"].read_bytes() for s in plan.steps if s.engine == ONNXRUNTIME}
        library = files[_LIBRARY] if any(s.engine == RELAX for s in plan.steps) else None
        weights = checked_weights(parts[WEIGHTS], plan.weight_bytes)
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"the manifest does not describe a compiled plan ({error!r}); save the model again"
        ) from error
    return RelaxExecutable(backend, library, plan, weights, partitions)


def session_of(name: str, data: bytes, num_threads: int) -> Partition:
    """A fallback partition in ONNX Runtime.

    Raises:
        UnsupportedError: ONNX Runtime cannot load it.
    """
    try:
        return OrtSession(data, num_threads=num_threads, spinning=False).run
    except UnsupportedError as error:
        raise UnsupportedError(f"the fallback partition {name}: {error.reason}", node=error.node) from error


def checked_weights(part: Path | Array, size: int) -> Array:
    """The weights, mapped if they are a file; DLPack takes no read-only arrays, but nothing is ever written."""
    if size == 0:
        return np.empty(0, np.uint8)
    found = part.stat().st_size if isinstance(part, Path) else part.nbytes
    if found != size:
        raise ArtifactError(f"the weights have {found} bytes where the manifest says {size}; save the model again")
    if isinstance(part, Path):
        with part.open("rb") as file:
            weights = np.frombuffer(mapped(file), np.uint8)
    else:
        weights = part
    if weights.ctypes.data % ALIGNMENT:
        raise ArtifactError("the weights are not aligned in memory; save the model again")
    return weights


def spec_of(value: Value) -> TensorSpec:
    """An input or an output of the plan, as the caller sees it."""
    shape = None if value.shape is None else tuple(value.shape)
    return TensorSpec(value.name, value.dtype, shape)


def notes_of(plan: Plan) -> list[str]:
    """What the report says of the fallback partitions."""
    notes = []
    for step in plan.steps:
        if step.engine == ONNXRUNTIME:
            notes.append(f"{step.entry}: {len(step.nodes)} nodes run in ONNX Runtime ({'; '.join(step.reasons[:4])})")
    return notes
