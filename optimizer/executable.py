"""What a backend hands back: something that can be run, timed and stored.

`TensorSpec` describes one input or output, `KernelTime` one row of a profile, `Executable` the contract between a
backend and `optimizer.compiled.CompiledModel`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, cast

import numpy.typing as npt

from optimizer.activation_memory import ActivationMemory
from optimizer.errors import ArtifactError, ExecutionError, TersorError
from optimizer.forecast import Forecast

__all__ = ["Array", "Executable", "KernelTime", "Part", "TensorSpec", "run_executable"]

Array: TypeAlias = npt.NDArray[Any]
Part: TypeAlias = Path | bytes | Array
"""One file inside a saved model: a file on disk, its bytes, or an array that is written as it lies in memory."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output.

    Attributes:
        name: The name in the graph.
        dtype: A numpy name (`"float32"`), an `ml_dtypes` name (`"bfloat16"`, `"int4"`), or `"string"`. A value that is
            not a tensor has the ONNX type string instead (`"seq(tensor(float))"`, `"optional(tensor(float))"`) and is
            passed on as it is: a list of arrays, or `None`.
        shape: One entry an axis: an `int`, the name of a symbolic dimension, or `None` when nothing is known of that
            axis. The whole is `None` when not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @classmethod
    def from_json(cls, data: object) -> tuple[TensorSpec, ...]:
        """Read a list of specifications, each an object with the attributes of this class.

        Raises:
            ArtifactError: The data is not such a list.
        """
        try:
            return tuple(
                cls(str(spec["name"]), str(spec["dtype"]), None if spec["shape"] is None else tuple(spec["shape"]))
                for spec in cast("list[dict[str, Any]]", data)
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError("the saved model's manifest has a damaged signature: save the model again") from error

    def __str__(self) -> str:
        dims = "..." if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True)
class KernelTime:
    """Where the time of a run went: one kernel.

    Attributes:
        name: The kernel's name.
        nodes: Names of the graph's nodes that it computes, when known.
        seconds: Time of all its calls in one run.
        calls: How often it is called in one run.
        forecast: What the tile model says of it, where it can tell.
    """

    name: str
    nodes: tuple[str, ...]
    seconds: float
    calls: int
    forecast: Forecast | None = None


class Executable(Protocol):
    """A compiled graph.

    Attributes:
        inputs: What `run` takes, in order.
        outputs: What `run` gives, in order.
        backend: The name of the backend that made it.
        notes: Lines for the report, such as the fallback partitions and their reasons.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backend: str
    notes: list[str]

    @property
    def memory(self) -> ActivationMemory | None:
        """What a run allocates, for the threads that it was last prepared for.

        `None` where it is not known: in ONNX Runtime, and with symbolic sizes before the first run; then those of the
        last run count.
        """
        ...

    def run(self, inputs: Sequence[Array], num_threads: int) -> list[Array]:
        """Compute the outputs. The inputs are C-contiguous, of the declared types, and are not changed."""
        ...

    def profile(self, inputs: Sequence[Array], num_threads: int, repeats: int) -> list[KernelTime]:
        """Run `repeats` times and give the median time of each kernel."""
        ...

    def parts(self) -> dict[str, Part]:
        """What `save` writes: file name inside the artifact -> content."""
        ...

    def manifest(self) -> dict[str, object]:
        """What `load` of the same backend needs besides the parts; JSON types only."""
        ...


_RUNTIME_FAILURES = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What the runtimes underneath raise when inputs do not go together or memory runs out."""


def run_executable(executable: Executable, inputs: Sequence[Any], num_threads: int) -> list[Any]:
    """Run, with one kind of error for whatever goes wrong in the runtime underneath.

    Raises:
        ExecutionError: The model fails on these inputs.
    """
    try:
        return executable.run(inputs, num_threads)
    except TersorError:
        raise
    except _RUNTIME_FAILURES as error:
        reason = (str(error).splitlines() or [""])[0][:400]
        raise ExecutionError(f"the model fails on these inputs: {type(error).__name__}: {reason}") from error
