"""The contract between `optimize()` and a backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from optimizer.executable import Array, Executable
from optimizer.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

Progress = Callable[[str], None]
"""Called with a short description when a backend starts a new stage."""


@dataclass(frozen=True)
class BackendInfo:
    """What `tersor targets` prints of a backend.

    Attributes:
        name: the target's kind.
        summary: one line.
        needs: what must be installed.
        operators: number of ONNX operators that it compiles itself.
        precisions: the precisions that it takes.
        proof: how results are checked on this machine.
        operator_names: which operators these are; empty if the backend does not tell.
    """

    name: str
    summary: str
    needs: str
    operators: int
    precisions: tuple[str, ...]
    proof: str
    operator_names: tuple[str, ...] = ()


class Backend(Protocol):
    """Turns an optimized graph into something that runs.

    Attributes:
        name: the target's kind.
        mappable: the parts that `load` also takes as arrays.
    """

    name: str
    precisions: tuple[str, ...]
    """What `optimize(precision=...)` may ask for."""
    mappable: Collection[str]

    def prewarm(self) -> None:
        """Start whatever takes time to start; called as early as the target is known. Returns at once."""
        ...

    def rest(self) -> None:
        """Give back the memory that `prewarm` took; what needs it starts again by itself."""
        ...

    def compile(
        self, model: ir.Model, target: Target, *, fallback: str, progress: Progress | None = None
    ) -> Executable:
        """Compile a graph.

        Args:
            model: canonical ONNX (opset 23 or later); not changed.
            target: a target of this backend's kind.
            fallback: "onnxruntime" runs what the backend cannot express in ONNX Runtime; "error" refuses it.
            progress: told of each stage.

        Raises:
            UnsupportedError: `fallback="error"` and a node cannot be expressed.
            CompileError: code generation failed.
        """
        ...

    def load(self, parts: Mapping[str, Path | Array], manifest: Mapping[str, object]) -> Executable:
        """Make a saved executable runnable again.

        Args:
            parts: name -> a verified file on disk, for every part that `Executable.parts` gave; one that is `mappable`
                may be an array of its bytes, aligned to 64.
            manifest: what `Executable.manifest` gave.
        """
        ...

    def describe(self) -> BackendInfo:
        """What the backend needs and can do."""
        ...
