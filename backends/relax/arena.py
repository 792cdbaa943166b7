"""Where buffers lie in one arena: offsets from sizes and lifetimes, nothing else. Used by the compiler and by the run.

Buffers whose lifetimes overlap must not share bytes; the arena should be as short as possible. The exact problem is
NP-hard (dynamic storage allocation). "Greedy by size" of Pisarchyk and Lee ("Efficient Memory Management for Deep
Neural Net Inference", 2020, section 5.3) takes the largest buffer first and puts each into the smallest gap that holds
it. Other orders are tried only if the result is above the lower bound, the most bytes that live at one time: by the
most that lives beside a buffer (the same, section 5.2), and others. What then sticks out above the bound is placed
first in a next round, and so on (after Joslin and Clements, "Squeaky Wheel Optimization", 1999).
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.relax.packing import ALIGNMENT

__all__ = ["REPAIRS", "Placement", "most_alive", "place", "rounded"]

_FEW = 1000
"""Up to so many buffers, more than one order is tried: an order takes the square of their number."""

REPAIRS = 30
"""Rounds that a compiler may take for each order: with a few hundred buffers some 10 ms each."""

_STEPS = 3_000_000
"""With more buffers there are fewer rounds: a round takes the square of their number, all of them so much."""

_NEAR = 1.01
"""A result so near to the bound is not improved any more."""

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


def place(sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]], repairs: int = 0) -> Placement:
    """Offsets for buffers that live from step to step; the same for the same arguments.

    Args:
        sizes: of the buffers, in bytes.
        lifetimes: the first and the last step of each, both included.
        repairs: rounds of repair for each order.
    """
    if not sizes:
        return Placement((), 0)
    lengths = np.array([rounded(size) for size in sizes], np.int64)
    spans = np.array(lifetimes, np.int64).reshape(-1, 2)
    least = most_alive(sizes, lifetimes)
    few = len(sizes) <= _FEW
    best: tuple[_Integers, int] | None = None
    for offsets, total in _tries(lengths, spans, least, repairs if few else 0):
        if best is None or total < best[1]:
            best = (offsets, total)
        if best[1] == least or not few:
            break
    assert best is not None
    return Placement(tuple(int(offset) for offset in best[0]), best[1])


def _tries(lengths: _Integers, spans: _Integers, least: int, repairs: int) -> Iterator[tuple[_Integers, int]]:
    """Every order, and then each with what sticks out moved to its front."""
    orders, results = list(_orders(lengths, spans)), []
    for order in orders:
        results.append(_in_order(order, lengths, spans))
        yield results[-1]
    smallest = min(total for _, total in results)
    for order, (offsets, _) in zip(orders, results, strict=True):
        rounds = min(repairs, _STEPS // len(lengths) ** 2)
        for _ in range(rounds if smallest > _NEAR * least else 0):
            above = (offsets + lengths > least)[order]
            order = np.concatenate([order[above], order[~above]])
            offsets, total = _in_order(order, lengths, spans)
            smallest = min(smallest, total)
            yield offsets, total


def _orders(lengths: _Integers, spans: _Integers) -> Iterator[_Integers]:
    """Largest first; largest product of size and lifetime first; as they come to life; in the fullest steps first."""
    yield np.lexsort((spans[:, 0], -lengths))
    yield np.lexsort((spans[:, 0], -lengths * (spans[:, 1] - spans[:, 0] + 1)))
    yield np.lexsort((-lengths, spans[:, 0]))
    alive = np.zeros(int(spans.max()) + 2, np.int64)
    np.add.at(alive, spans[:, 0], lengths)
    np.subtract.at(alive, spans[:, 1] + 1, lengths)
    alive = np.cumsum(alive)
    beside = np.array([alive[first : last + 1].max() for first, last in spans], np.int64)
    yield np.lexsort((-lengths, -beside))


def _in_order(order: _Integers, lengths: _Integers, spans: _Integers) -> tuple[_Integers, int]:
    """Each buffer in the smallest gap between those that are placed and live when it does, else behind them.

    Plain Python: of the hundred buffers of a model arrays have little to do, and the run of a new size waits for it.
    """
    placed: list[tuple[int, int, int, int]] = []  # start, end, first and last step, by start
    offsets = np.zeros_like(lengths)
    for index in order.tolist():
        size, first, last = (int(v) for v in (lengths[index], *spans[index]))
        start = _smallest_gap(placed, size, first, last) if size else 0
        offsets[index] = start
        insort(placed, (start, start + size, first, last))
    return offsets, max(end for _, end, _, _ in placed)


def _smallest_gap(placed: Sequence[tuple[int, int, int, int]], size: int, first: int, last: int) -> int:
    best = narrowest = -1
    free = 0
    for start, end, begins, ends in placed:
        if begins <= last and ends >= first:
            gap = start - free
            if gap >= size and (best < 0 or gap < narrowest):
                best, narrowest = free, gap
            free = max(free, end)
    return free if best < 0 else best
