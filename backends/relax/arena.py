"""Where buffers lie in one arena: offsets from sizes and lifetimes, nothing else. Used by the compiler and by the run.

Buffers whose lifetimes overlap must not share bytes; the arena should be as short as possible. The exact problem is
NP-hard (dynamic storage allocation). "Greedy by size" of Pisarchyk and Lee ("Efficient Memory Management for Deep
Neural Net Inference", 2020, section 5.3) takes the largest buffer first and puts each into the smallest gap that holds
it. Other orders are tried only if the result is above the lower bound, the most bytes that live at one time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.relax.packing import ALIGNMENT

__all__ = ["Placement", "most_alive", "place", "rounded"]

_FEW = 1000
"""Up to so many buffers, more than one order is tried: an order takes the square of their number."""

_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Placement:
    """Offsets of buffers in an arena, and its length, in bytes."""

    offsets: tuple[int, ...]
    bytes: int


def rounded(size: int) -> int:
    """The size in bytes, up to a multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def most_alive(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]]) -> int:
    """The most bytes that live at one time: no arena is shorter.

    Args:
        sizes: of the buffers, in bytes.
        lifetimes: the first and the last step of each, both included.
    """
    changes: dict[int, int] = {}
    for size, (first, last) in zip(sizes, lifetimes, strict=True):
        changes[first] = changes.get(first, 0) + rounded(size)
        changes[last + 1] = changes.get(last + 1, 0) - rounded(size)
    alive = most = 0
    for step in sorted(changes):
        alive += changes[step]
        most = max(most, alive)
    return most


def place(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]]) -> Placement:
    """Offsets for buffers that live from step to step; the same for the same arguments.

    Args:
        sizes: of the buffers, in bytes.
        lifetimes: the first and the last step of each, both included.
    """
    if not sizes:
        return Placement((), 0)
    lengths = np.array([rounded(size) for size in sizes], np.int64)
    spans = np.array(lifetimes, np.int64).reshape(-1, 2)
    least = most_alive(sizes, lifetimes)
    best: tuple[_Integers, int] | None = None
    for order in _orders(lengths, spans):
        offsets, total = _in_order(order, lengths, spans)
        if best is None or total < best[1]:
            best = (offsets, total)
        if best[1] == least or len(sizes) > _FEW:
            break
    assert best is not None
    return Placement(tuple(int(offset) for offset in best[0]), best[1])


def _orders(lengths: _Integers, spans: _Integers) -> Iterator[_Integers]:
    """Largest first; largest product of size and lifetime first; as they come to life."""
    yield np.lexsort((spans[:, 0], -lengths))
    yield np.lexsort((spans[:, 0], -lengths * (spans[:, 1] - spans[:, 0] + 1)))
    yield np.lexsort((-lengths, spans[:, 0]))


def _in_order(order: _Integers, lengths: _Integers, spans: _Integers) -> tuple[_Integers, int]:
    """Each buffer in the smallest gap between those that are placed and live when it does, else behind them."""
    first, last, size = (column[order] for column in (spans[:, 0], spans[:, 1], lengths))
    start = np.zeros(len(order), np.int64)
    for index in range(len(order)):
        meets = np.flatnonzero((first[:index] <= last[index]) & (last[:index] >= first[index]))
        if len(meets) and size[index]:
            start[index] = _smallest_gap(start[meets], size[meets], int(size[index]))
    offsets = np.empty_like(start)
    offsets[order] = start
    return offsets, int((start + size).max())


def _smallest_gap(starts: _Integers, sizes: _Integers, wanted: int) -> int:
    by_start = np.argsort(starts, kind="stable")
    starts = starts[by_start]
    ends = np.maximum.accumulate(starts + sizes[by_start])
    free = np.concatenate([[0], ends[:-1]])
    gaps = starts - free
    fits = np.flatnonzero(gaps >= wanted)
    return int(free[fits[np.argmin(gaps[fits])]]) if len(fits) else int(ends[-1])
