"""A histogram of numbers that come in pieces, in fixed memory, whose result does not depend on the pieces' order.

The bins divide [-R, R) evenly, R a power of two above all numbers. When one lies outside, R is doubled as often as
needed, and neighbouring bins are joined in pairs: exactly, since the edges of the wider bins are edges of the others.

Zeros are not counted: every grid has them exactly, and the many that a Relu or a mask gives would hide the rest.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BINS", "Histogram"]

BINS = 8192
"""64 KB of counts. The largest number lies in the outer half of its side: 8 bins or more for each step of a grid."""

_LOWEST_EXPONENT = -126
_PIECE = 1 << 20
"""Elements that are counted at a time: the work space is bounded, too."""

Counts = npt.NDArray[np.int64]


class Histogram:
    """Counts numbers.

    Attributes:
        low: The smallest number so far, exactly; 0 if there was none.
        high: The largest.
        counts: `[BINS]`, how many numbers other than zero lie in each bin.
    """

    def __init__(self) -> None:
        self.low = 0.0
        self.high = 0.0
        self.counts: Counts = np.zeros(BINS, np.int64)
        self._exponent: int | None = None

    @property
    def reach(self) -> float:
        """`R`: the bins go from `-R` to `R`."""
        return 0.0 if self._exponent is None else 2.0**self._exponent

    @property
    def centers(self) -> npt.NDArray[np.float64]:
        """The middle of each bin."""
        return np.asarray((np.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach, np.float64)

    @property
    def total(self) -> int:
        """How many numbers other than zero there were."""
        return int(self.counts.sum())

    def add(self, numbers: npt.NDArray[Any]) -> None:
        """Count numbers.

        Args:
            numbers: Finite, of any shape.

        Raises:
            ValueError: One of them is NaN or infinite.
        """
        flat = numbers.reshape(-1)
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("NaN or infinity")
        empty = self._exponent is None
        self.low, self.high = (low, high) if empty else (min(low, self.low), max(high, self.high))
        self._widen(max(abs(low), abs(high)))
        for start in range(0, flat.size, _PIECE):
            self._count(flat[start : start + _PIECE])

    def _count(self, piece: npt.NDArray[Any]) -> None:
        # A power of two scales exactly.
        piece = piece[piece != 0]
        places = np.floor(piece.astype(np.float64) * (BINS / 2 / self.reach)).astype(np.int64) + BINS // 2
        self.counts += np.bincount(places, minlength=BINS)

    def _widen(self, largest: float) -> None:
        needed = _LOWEST_EXPONENT
        if largest > 0:
            needed = max(needed, math.frexp(largest)[1])
        if self._exponent is None:
            self._exponent = needed
        while self._exponent < needed:
            if not self.counts.any() or needed - self._exponent > math.log2(BINS) + 1:
                # So many joins leave the two bins beside zero.
                below, above = self.counts[: BINS // 2].sum(), self.counts[BINS // 2 :].sum()
                self.counts[:] = 0
                self.counts[BINS // 2 - 1 : BINS // 2 + 1] = below, above
                self._exponent = needed
                return
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts[:] = 0
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = joined
            self._exponent += 1
