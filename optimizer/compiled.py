"""A compiled model: called like a function, asked where its time goes, and saved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.activation_memory import ActivationMemory
from optimizer.errors import InputError
from optimizer.executable import Executable, TensorSpec, run_executable
from optimizer.profile import Profile
from optimizer.report import Report
from optimizer.signature import bind, is_mapping, is_torch, to_torch

if TYPE_CHECKING:
    import os

    import onnx_ir as ir

    from optimizer.model_diff import ModelDiff, Side

__all__ = ["CompiledModel"]


class CompiledModel:
    """What `optimize()` and `load()` give.

    Call it with numpy arrays or PyTorch tensors, by position, by name, or with one mapping from names to values. One
    output is returned as it is, several as a tuple in the order of `outputs`. If any input is a tensor, so are the
    outputs. Inputs that are contiguous and of the declared type are not copied, and never changed.

    It may be called from several threads at once; the calls then run one after the other.

    Attributes:
        report: What was done to the model, and what it cost.
    """

    def __init__(
        self,
        executable: Executable,
        *,
        graph: Callable[[], ir.Model],
        original: Callable[[], Side],
        report: Report,
        target: str,
        num_threads: int,
    ) -> None:
        """Wrap an executable.

        Args:
            executable: What a backend made.
            graph: Gives the optimized graph; called on first use.
            original: Gives the facts about the graph before the passes.
            report: What was done.
            target: The target, as text.
            num_threads: For the first calls.
        """
        self.report = report
        self._executable = executable
        self._load_graph = graph
        self._original = original
        self._graph: ir.Model | None = None
        self._target = target
        self._lock = threading.RLock()
        self.num_threads = num_threads

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, type and shape of each input, in the order of positional arguments."""
        return self._executable.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, type and shape of each output."""
        return self._executable.outputs

    @property
    def target(self) -> str:
        """What it was compiled for."""
        return self._target

    @property
    def num_threads(self) -> int:
        """How many threads a call may use."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, count: int) -> None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"num_threads must be a positive integer, not {count!r}")
        self._num_threads = count

    @property
    def memory(self) -> ActivationMemory | None:
        """What runs allocate besides weights and inputs, for the sizes of the last one.

        `None` where it is not known: with `target="onnx"`, and with symbolic sizes before the first run.
        """
        return self._executable.memory

    @property
    def graph(self) -> ir.Model:
        """The optimized graph, as standard ONNX."""
        with self._lock:
            if self._graph is None:
                self._graph = self._load_graph()
            return self._graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: An input is missing, unknown, or of the wrong type, rank or size.
            ExecutionError: Sizes that the signature leaves open do not go together, or memory ran out.
        """
        results = self._run(bind(self.inputs, args, kwargs))
        given = args[0].values() if len(args) == 1 and is_mapping(args[0]) else args
        if any(map(is_torch, given)) or any(map(is_torch, kwargs.values())):
            results = [to_torch(value) for value in results]
        return results[0] if len(results) == 1 else tuple(results)

    def profile(self, *args: Any, repeats: int = 10, **kwargs: Any) -> Profile:
        """Where the time of a run goes, kernel by kernel; it is added to the report.

        Args:
            args: Inputs, as in a call.
            repeats: How many runs are timed.
            kwargs: Inputs by name.

        Raises:
            InputError: An input is wrong, or `repeats` is not positive.
        """
        if repeats < 1:
            raise InputError(f"repeats must be at least 1, not {repeats}")
        inputs = bind(self.inputs, args, kwargs)
        with self._lock:
            kernels = self._executable.profile(inputs, self.num_threads, repeats)
        profile = Profile(tuple(sorted(kernels, key=lambda kernel: -kernel.seconds)))
        self.report = self.report.with_profile(profile)
        return profile

    def diff(self) -> ModelDiff:
        """How the optimized graph differs from the original, as the passes got it.

        Raises:
            ArtifactError: The model was loaded from a file that was saved without its graph.
        """
        from optimizer.model_diff import compare_sides, read_side

        return compare_sides(self._original(), read_side(self.graph, "optimized"))

    def save(self, path: str | os.PathLike[str], *, graph: bool = True) -> None:
        """Write everything into one file, that `optimizer.load` reads.

        Args:
            path: An existing file is replaced once the new one is complete.
            graph: Whether to store the optimized graph, too. Without it the file is about half as large, and `graph`,
                `save_onnx` and `diff` are not available after loading.

        Raises:
            ArtifactError: The file cannot be written; nothing is left behind.
        """
        from optimizer.artifact import save_artifact

        original = self._original() if graph else None
        save_artifact(self, self._executable, Path(path), with_graph=graph, original=original)

    def save_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write the optimized graph as an `.onnx` file; weights over 1 GiB go to a file beside it.

        Raises:
            ArtifactError: The file cannot be written; nothing is left behind.
        """
        from optimizer.onnx_writer import write_onnx

        write_onnx(self.graph, Path(path))

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"CompiledModel({inputs} -> {outputs}; target {self.target!r})"

    def _run(self, inputs: list[Any]) -> list[Any]:
        with self._lock:
            return run_executable(self._executable, inputs, self._num_threads)
