"""What a machine can do at most: floating-point operations a second, and bytes a second from memory.

The two roofs of the roofline model (Williams, Waterman and Patterson, Roofline: An Insightful Visual Performance Model
for Multicore Architectures, 2009). They serve predictions and shares of the peak; no code depends on them.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

__all__ = ["Peaks", "read_bandwidth"]

_READ_BYTES = 1 << 27
"""More than most last-level caches hold, and read in some ten milliseconds."""
_ROUNDS = 8


@dataclass(frozen=True)
class Peaks:
    """The roofs.

    Attributes:
        flops: Floating-point operations a second, in float32.
        bandwidth: Bytes read a second from memory.
    """

    flops: float
    bandwidth: float

    def roof(self, intensity: float) -> float:
        """The most operations a second at this many operations a byte."""
        return min(self.flops, intensity * self.bandwidth)


@cache
def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory; the best of a few rounds, once a process, in 0.1 seconds.

    Each thread takes the largest element of its part of an array: numpy does that for integers as fast as they come,
    and without the lock.
    """
    parts = np.split(np.ones(_READ_BYTES // 4 // threads * threads, np.int32), threads)
    with ThreadPoolExecutor(threads) as pool:
        seconds = min(_seconds(pool, parts) for _ in range(_ROUNDS))
    return sum(part.nbytes for part in parts) / seconds


def _seconds(pool: ThreadPoolExecutor, parts: list[np.ndarray]) -> float:
    start = time.perf_counter()
    list(pool.map(np.max, parts))
    return time.perf_counter() - start
