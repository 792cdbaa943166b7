"""The memory that runs of a compiled model take, besides its weights and the inputs that it is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.text import size

__all__ = ["ActivationMemory"]


@dataclass(frozen=True)
class ActivationMemory:
    """What is allocated when a model runs, in bytes.

    Attributes:
        arena: Intermediate results, and inputs that must be copied to be aligned; kept between runs.
        outputs: What a run gives, and what the engines of a model with fallback partitions hand to each other.
        scratch: What kernels take for themselves, on all threads together; kept between runs.
        threads: The number of threads that `scratch` is for.
        least: The most bytes of intermediate results that live at one time: no arena is shorter.
        complete: Whether this is all. The memory of a fallback partition is ONNX Runtime's own, and not known.
    """

    arena: int
    outputs: int
    scratch: int
    threads: int
    least: int
    complete: bool = True

    @property
    def peak(self) -> int:
        """All together."""
        return self.arena + self.outputs + self.scratch

    def __str__(self) -> str:
        parts = f"arena {size(self.arena)}, outputs {size(self.outputs)}, scratch {size(self.scratch)}"
        more = "" if self.complete else "; what ONNX Runtime takes is not counted"
        return f"memory of a run: {size(self.peak)} ({parts} on {self.threads} threads{more})"

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {**asdict(self), "peak": self.peak}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActivationMemory:
        """The inverse.

        Raises:
            KeyError, TypeError: The data is nothing of the kind.
        """
        return cls(**{name: value for name, value in data.items() if name != "peak"})
