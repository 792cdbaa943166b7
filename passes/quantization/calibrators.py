"""Which range of numbers a grid should cover, from what was seen of them.

* `minmax`: all of it.
* `percentile`: all but the share that lies furthest out, half of it on each side.
* `entropy`: the range that loses the least information, by the divergence of Kullback and Leibler between the numbers
  and what is left of them (Migacz, 8-bit Inference with TensorRT, GTC 2017).
* `mse`: the range with the smallest squared error: what is cut off against what is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from passes.quantization.grids import Kind
from passes.quantization.histogram import BINS, Histogram

__all__ = ["METHODS", "calibrate", "squared_error"]

METHODS = ("minmax", "percentile", "entropy", "mse")

_STEPS = 64
"""How many widths the searches try: a factor of 1 down to 1 / 64 for entropy, evenly."""

_ROUNDS = 2
_CLOSEST = 0.2
"""An optimum for 8 bits is hardly ever further in than this: a normal distribution has it at four sigma."""

Range = tuple[float, float]
Weights = npt.NDArray[np.float64]


def calibrate(seen: Histogram, kind: Kind, method: str, percentile: float) -> Range:
    """The range for a grid.

    Args:
        seen: The numbers.
        kind: Of the grid.
        method: One of `METHODS`.
        percentile: For `"percentile"`: how much of the numbers, in percent, is to lie inside.

    Returns:
        Its ends; zero may lie outside.
    """
    if not seen.total:
        return seen.low, seen.high
    if method == "percentile":
        return _percentile(seen, kind, percentile)
    if method == "entropy":
        return _entropy(seen)
    if method == "mse":
        return _least_squares(seen, kind)
    return seen.low, seen.high


def squared_error(seen: Histogram, kind: Kind, ends: Range) -> float:
    """The sum of squared errors of the numbers on the grid over a range, taken at the middle of each bin.

    Of the rounding inside a bin only the expected size counts, since nothing is known of where in it the numbers lie.
    """
    grid = kind.over(*ends)
    used = np.flatnonzero(seen.counts)
    x = np.clip(seen.centers[used], seen.low, seen.high)
    inside = np.clip(x, grid.low, grid.high)
    rounding = grid.scale**2 / 12
    return float(np.sum(seen.counts[used] * ((x - inside) ** 2 + rounding)))


def _percentile(seen: Histogram, kind: Kind, percentile: float) -> Range:
    edges = np.linspace(-seen.reach, seen.reach, BINS + 1)
    outside = (1 - percentile / 100) * seen.total
    if kind.symmetric:
        folded = seen.counts[BINS // 2 :] + seen.counts[: BINS // 2][::-1]
        width = float(edges[BINS // 2 + 1 + np.searchsorted(np.cumsum(folded), seen.total - outside)])
        return max(seen.low, -width), min(seen.high, width)
    cumulative = np.cumsum(seen.counts)
    first = int(np.searchsorted(cumulative, outside / 2, side="right"))
    last = int(np.searchsorted(cumulative, seen.total - outside / 2))
    return max(seen.low, float(edges[first])), min(seen.high, float(edges[min(last, BINS - 1) + 1]))


def _candidates(seen: Histogram) -> Iterator[Range]:
    """Ranges that are narrower and narrower, the widest first; a side without numbers stays empty."""
    widest = max(abs(seen.low), abs(seen.high))
    for step in range(_STEPS, 0, -1):
        width = widest * step / _STEPS
        yield max(seen.low, -width), min(seen.high, width)


def _entropy(seen: Histogram) -> Range:
    best: tuple[float, Range] = (np.inf, (seen.low, seen.high))
    for ends in _candidates(seen):
        divergence = _divergence(seen, ends)
        if divergence < best[0]:
            best = divergence, ends
    return best[1]


def _divergence(seen: Histogram, ends: Range) -> float:
    """Of what is left of the numbers after 255 levels from what they were, with all that is outside at the ends."""
    width = 2 * seen.reach / BINS
    first = max(0, int(np.floor((ends[0] + seen.reach) / width)))
    last = min(BINS, max(first + 1, int(np.ceil((ends[1] + seen.reach) / width))))
    inside = seen.counts[first:last].astype(np.float64)
    p = inside.copy()
    p[0] += seen.counts[:first].sum()
    p[-1] += seen.counts[last:].sum()
    levels = min(255, len(p))
    level = np.arange(len(p)) * levels // len(p)
    # Each level spreads its numbers over those of its bins that hold any.
    filled = p > 0
    share = np.bincount(level, inside, levels) / np.maximum(np.bincount(level, filled, levels), 1)
    q = np.where(filled, share[level], 0.0)
    p_total, q_total = p.sum(), q.sum()
    if not q_total or (q[filled] == 0).any():
        return float(np.inf)
    p, q = p[filled] / p_total, q[filled] / q_total
    return float(np.sum(p * np.log(p / q)))


def _least_squares(seen: Histogram, kind: Kind) -> Range:
    """Shrink both sides together, then each by itself; what is found is never worse than the whole range."""
    best = min(((squared_error(seen, kind, ends), -i, ends) for i, ends in enumerate(_candidates(seen))))
    error, ends = best[0], best[2]
    if kind.symmetric:
        return ends
    factors = np.linspace(_CLOSEST, 1, _STEPS)
    for _ in range(_ROUNDS):
        for side in (0, 1):
            whole = (seen.low, seen.high)[side]
            for factor in factors:
                tried = (whole * factor, ends[1]) if side == 0 else (ends[0], whole * factor)
                if tried[0] <= tried[1] and (found := squared_error(seen, kind, tried)) < error:
                    error, ends = found, tried
    return ends
