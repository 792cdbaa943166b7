"""The nodes that a segment becomes, before they are nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from passes.tiling.cut import WHOLE, Array, Window

__all__ = ["TAIL", "WINDOW", "Key", "Operand", "Step", "bounds"]


TAIL, WINDOW = "tail", "window"
"""The parts of what a piece keeps for the next one, and of what it reads of something larger."""


@dataclass(frozen=True)
class Key:
    """A window of a value as one piece has it; piece -1 for what all have, `part` for what is only a summand."""

    value: ir.Value
    window: Window = WHOLE
    piece: int = -1
    part: str = ""

    def __hash__(self) -> int:
        """Of what tells most keys apart; they are looked up millions of times."""
        return hash((id(self.value), self.window.start, self.piece))


Operand = Key | tuple[ir.Value, Window] | Array | None
"""What a step is given: something computed, a window of a weight, a new constant, or nothing."""


@dataclass(eq=False)
class Step:
    """One node of the result.

    Attributes:
        op_type: Its operator.
        like: The node whose attributes and origins it has.
        operands: Its inputs.
        gives: Its output.
        attributes: Those that differ.
        flops: Its arithmetic.
        over: The operand whose memory the result takes, where nobody else needs that.
    """

    op_type: str
    like: ir.Node
    operands: Sequence[Operand]
    gives: Key
    attributes: dict[str, ir.Attr | None]
    flops: float = 0.0
    over: Key | None = None


def bounds(window: Window, origin: int = 0) -> list[Array]:
    """The operands of a Slice that cuts a window out of something that begins at `origin`: from, to, axis."""
    numbers = (window.start - origin, window.stop - origin, window.axis)
    return [np.array([number], np.int64) for number in numbers]
