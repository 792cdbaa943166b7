"""The tile model's choices where a kernel's sizes are known, each beside its best alternatives.

* `panel RxKxN`: columns in a panel of a constant K x N that R rows are multiplied with. A direct convolution has a
  row of pixels for R and all taps for K.
* `winograd NxHxWxCxO`: columns in a panel of the filters of a 3 x 3 convolution, from C channels to O; 0: direct sum.

A value that was measured to be better comes before the analytic one. Every value computes the same sums: in panels of
another width, or by the other method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from backends.cpu.tiles import MAX_VECTORS, Tiles
from backends.relax.values import ConvShape
from optimizer.target import Cpu
from optimizer.tuning import Decision

__all__ = ["ChosenTiles"]

_MOST_COST = 1.5
"""An alternative that is predicted to take more than so many times as long is not worth a try."""
_MOST_COST_OF_A_METHOD = 2.0
"""The same of Winograd's method or the direct sum, between which the model is less sure."""
_MOST_VALUES = 4
"""The analytic one, and the three best others."""
_WINOGRAD_VECTORS = (1, 2, 3, 4)


@dataclass(frozen=True)
class ChosenTiles(Tiles):
    """Tile choices for one processor that takes what was measured, and notes what it was asked.

    Attributes:
        measured: Values by key; one that is not among those that the key may have is not taken.
        decisions: What was decided so far, by key.
        asking: Holds what tells the node that asks.
    """

    measured: Mapping[str, int] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    asking: list[Callable[[], str]] = field(default_factory=list)

    def asked_by(self, node: Callable[[], str]) -> None:
        """From now on, those who ask are the node of that name."""
        self.asking[:] = [node]

    def panel_width(self, rows: int | None, columns: int, depth: int, dtype: str = "float32", taps: int = 1) -> int:
        """See `Tiles.panel_width`."""
        analytic = super().panel_width(rows, columns, depth, dtype, taps)
        if rows is None:
            return analytic
        lanes = self.lanes(dtype)
        most = min(MAX_VECTORS, -(-columns // lanes))
        cycles = {v * lanes: self.panel_cycles(rows, columns, depth, dtype, v, taps) for v in range(1, most + 1)}
        cycles.setdefault(analytic, self.panel_cycles(rows, columns, depth, dtype, analytic // lanes, taps))
        costs = {width: cost / cycles[analytic] for width, cost in cycles.items() if self.fits(1, width // lanes)}
        kind = "panel" if dtype == "float32" else f"panel {dtype}"
        return self._decide(f"{kind} {rows}x{depth}x{columns}", analytic, _best(costs, analytic, _MOST_COST))

    def winograd_width(self, shape: ConvShape) -> int | None:
        """See `Tiles.winograd_width`."""
        analytic = _analytic_width(self.cpu, shape)
        if None in (shape.images, shape.height, shape.width) or shape.depth % self.lanes():
            return analytic
        widths = [v * self.lanes() for v in _WINOGRAD_VECTORS if (v - 1) * self.lanes() < shape.columns]
        cycles = {panel: _winograd_cycles(self.cpu, shape, panel) for panel in widths}
        seconds = {0: cycles[widths[0]][1], **{panel: own for panel, (own, _) in cycles.items()}}
        costs = {value: cost / seconds[analytic or 0] for value, cost in seconds.items()}
        key = f"winograd {shape.images}x{shape.height}x{shape.width}x{shape.depth}x{shape.columns}"
        return self._decide(key, analytic or 0, _best(costs, analytic or 0, _MOST_COST_OF_A_METHOD)) or None

    def _decide(self, key: str, analytic: int, costs: dict[int, float]) -> int:
        measured = self.measured.get(key, analytic)
        value = measured if measured in costs else analytic
        node = self.asking[0]() if self.asking else ""
        known = self.decisions.get(key)
        nodes = () if known is None else known.nodes
        self.decisions[key] = Decision(key, value, costs, nodes if node in nodes else (*nodes, node))
        return value


def _best(costs: Mapping[int, float], analytic: int, most: float) -> dict[int, float]:
    """The analytic value, and the best others that are predicted to be near it."""
    others = sorted((cost, value) for value, cost in costs.items() if value != analytic and cost <= most)
    return {analytic: 1.0, **{value: cost for cost, value in others[: _MOST_VALUES - 1]}}


@lru_cache(maxsize=1024)
def _analytic_width(cpu: Cpu, shape: ConvShape) -> int | None:
    """By the model alone; a network that is computed in pieces asks for the same shapes again and again."""
    return Tiles(cpu).winograd_width(shape)  # of which the direct sum is only imagined, and decides nothing


@lru_cache(maxsize=4096)
def _winograd_cycles(cpu: Cpu, shape: ConvShape, panel: int) -> tuple[float, float]:
    return Tiles(cpu).winograd_cycles(shape, panel)
