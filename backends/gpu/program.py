"""What a compiled model does on a device, as plain data for the runtime and for a saved model.

A routine runs one step of the plan. Its instructions start device functions, in order, on one queue.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from backends.relax.size_value import Formula

__all__ = ["Buffer", "Constant", "Instruction", "Place", "Program", "Routine", "Tensor"]

Place = list[Any]
"""Where a tensor lies: [kind, index]. The kinds:

* "memory": a buffer of the step's memory plan
* "input": a tensor that the step takes
* "weight": one of the step's weights
* "own": one that the routine allocates, see `Routine.own`
* "constant": one of `Program.constants`
* "scratch": what one launch of a kernel writes for the next, see `Instruction.scratch`
* "faults": where the kernel leaves the number of a demand that is not met
"""


@dataclass
class Tensor:
    """A tensor of a routine.

    Attributes:
        place: where it lies.
        shape: its sizes.
        dtype: of its elements.
    """

    place: Place
    shape: list[Formula]
    dtype: str


@dataclass
class Buffer:
    """Memory that the plan leaves to the run: of what a step gives, and of sizes that are not known before.

    Attributes:
        bytes: its length.
    """

    bytes: Formula


@dataclass
class Instruction:
    """The start of one device function.

    Attributes:
        kernel: the kernel that it is a part of.
        entry: the function's name in the program.
        arguments: what it takes, in order: [place, width of an element in bytes] of a buffer, [formula, name of the
            type] of a size.
        grid: blocks along x, y and z.
        block: threads of a block.
        scratch: bytes of the kernel's scratch buffers; of its first function only.
        demands: texts of the errors, by the number that the kernel leaves less 1; of its last function only.
    """

    kernel: str
    entry: str
    arguments: list[list[Any]]
    grid: list[Formula]
    block: list[int]
    scratch: list[Formula] = field(default_factory=list)
    demands: list[str] = field(default_factory=list)


@dataclass
class Routine:
    """One step.

    Attributes:
        instructions: in order.
        results: what it gives.
        own: what it allocates.
    """

    instructions: list[Instruction]
    results: list[Tensor]
    own: list[Buffer]


@dataclass
class Constant:
    """An array that is a part of the program: its bytes, in hexadecimal digits."""

    data: str


@dataclass
class Program:
    """All routines, by the entry of their step.

    Attributes:
        routines: by entry.
        constants: arrays that kernels read besides weights.
        shared_bytes: the most that a block needs.
        threads: the most that a block has.
        extensions: of the language, that the source uses.
        estimated_seconds: of a run, by the model of the GPU; `None` where it cannot tell. Never a measurement.
    """

    routines: dict[str, Routine]
    constants: list[Constant] = field(default_factory=list)
    shared_bytes: int = 0
    threads: int = 1
    extensions: list[str] = field(default_factory=list)
    estimated_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Program:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: the data is not such a program.
        """

        def routine(item: dict[str, Any]) -> Routine:
            return Routine(
                [Instruction(**each) for each in item["instructions"]],
                [Tensor(**each) for each in item["results"]],
                [Buffer(**each) for each in item["own"]],
            )

        routines = {entry: routine(item) for entry, item in data["routines"].items()}
        constants = [Constant(**each) for each in data["constants"]]
        return cls(**{**data, "routines": routines, "constants": constants})
