"""How a GPU wants its constants packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.relax.values import ConvShape
from optimizer.gpus import Gpu

__all__ = ["GpuTiles"]

_COLUMNS = 64
"""Columns of a block's tile: two of a thread of a warp, and one panel of a packed matrix."""


@dataclass(frozen=True)
class GpuTiles:
    """See `backends.relax.values.PanelChoice`; the same for every device so far.

    Attributes:
        gpu: the architecture.
    """

    gpu: Gpu

    def asked_by(self, node: Callable[[], str]) -> None:
        """Nothing depends on the node."""

    def panel_width(self, rows: int | None, columns: int, depth: int, dtype: str = "float32", taps: int = 1) -> int:
        """The columns of a block's tile; fewer, in whole vectors, of a narrow matrix."""
        return min(_COLUMNS, -(-columns // 4) * 4)

    def together(self, dtype: str) -> int:
        """Four bytes where there are tensor cores: they multiply words. Else one: rows are read as they lie."""
        return 4 if self.gpu.tensor_cores and dtype in ("uint8", "int8") else 1

    def four_bit_width(self, columns: int) -> int:
        """The columns of a block's tile."""
        return _COLUMNS

    def attends(self, dtype: str, size: int = 0) -> bool:
        """All types that attention is defined for but float64."""
        return dtype in ("float32", "bfloat16", "float16")

    def winograd_width(self, shape: ConvShape) -> int | None:
        """None: convolutions are summed directly."""
        return None
