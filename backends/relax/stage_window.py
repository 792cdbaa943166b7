"""The window of a convolution as its stage tells it to the schedule rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from backends.relax.kernel import Stage

__all__ = ["StageWindow"]


@dataclass(frozen=True)
class StageWindow:
    """Size, strides, dilations, pads before each axis, and the pad behind a row."""

    kh: int
    kw: int
    sh: int
    sw: int
    dh: int
    dw: int
    ph: int
    pw: int
    behind: int

    @classmethod
    def of(cls, stage: Stage) -> Self:
        """From the stage's annotation."""
        return cls(*(int(v) for v in stage.annotations["tersor.window"]))  # type: ignore[attr-defined]
