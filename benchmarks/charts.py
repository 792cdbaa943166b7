"""The drawings of the suite: our speed over each peer, and where each model is below the machine's roofs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.contestants import TERSOR
from benchmarks.contests import FLOAT32, Contest
from benchmarks.machine import Machine
from benchmarks.rows import Row, geometric_mean
from benchmarks.svg import Drawing

__all__ = ["roofline", "speed"]

WIDTH = 860
LEFT, TOP = 170, 76
BAR, GAP = 10, 12
MEAN = "geometric mean"


def speed(rows: Sequence[Row]) -> str:
    """A bar for each model and peer: how many times as fast as the peer we are; the geometric means below them."""
    contest = rows[0].contest if rows else FLOAT32
    peers = contest.peers
    groups: list[tuple[str, dict[str, float], dict[str, str]]] = []
    for row in rows:
        medians = {peer: each.median for peer in peers if (each := row.speed_over(peer)) is not None}
        groups.append((row.model, medians, dict(row.absent)))
    columns = {peer: [medians[peer] for _, medians, _ in groups if peer in medians] for peer in peers}
    groups.append((MEAN, {peer: geometric_mean(column) for peer, column in columns.items() if column}, {}))
    right = WIDTH - 60
    most = max([1.0, *(value for _, medians, _ in groups for value in medians.values())])
    step = len(peers) * BAR + GAP
    bottom = TOP + len(groups) * step
    drawing = Drawing(WIDTH, bottom + 30, _title(contest))
    _legend(drawing, peers)

    def across(value: float) -> float:
        return LEFT + value / most * (right - LEFT)

    for tick in _ticks(most):
        drawing.line((across(tick), TOP - 6), (across(tick), bottom), "grid")
        drawing.text(across(tick), bottom + 16, f"{tick:g}", "small", "middle")
    for i, (name, medians, absent) in enumerate(groups):
        top = TOP + i * step
        drawing.text(LEFT - 8, top + step / 2 - 2, name, "strong" if name == MEAN else "", "end")
        for j, peer in enumerate(peers):
            y = top + j * BAR
            if peer in medians:
                drawing.rectangle(
                    LEFT, y, across(medians[peer]) - LEFT, BAR - 1, f"c{j}", f"{name}, over {peer}: {medians[peer]:.2f}"
                )
                drawing.text(across(medians[peer]) + 4, y + BAR - 2, f"{medians[peer]:.2f}", "small")
            elif name != MEAN:
                why = absent.get(peer) or absent.get(TERSOR, "not measured")
                drawing.text(LEFT + 4, y + BAR - 2, f"{peer}: {why}", "small muted")
    drawing.line((across(1), TOP - 6), (across(1), bottom), "line")
    return str(drawing)


def _title(contest: Contest) -> str:
    where = "" if contest is FLOAT32 else f" in {contest.precision}"
    return f"Speed of tersor over each peer{where} (above 1, tersor is faster)"


def _legend(drawing: Drawing, peers: Sequence[str]) -> None:
    for i, peer in enumerate(peers):
        drawing.rectangle(LEFT + i * 150, 42, 12, 12, f"c{i}")
        drawing.text(LEFT + i * 150 + 18, 52, f"over {peer}")


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to the greatest value, ten of them at most."""
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 100, math.inf) if most / step <= 10)
    return [0.0] if math.isinf(step) else [i * step for i in range(int(most / step) + 1)]


@dataclass(frozen=True)
class _Decades:
    """Two logarithmic axes: powers of ten at the ends, and where they lie in the drawing."""

    x: tuple[int, int]
    y: tuple[int, int]
    left: float = 70
    right: float = 560
    top: float = TOP
    bottom: float = 440

    def at(self, intensity: float, rate: float) -> tuple[float, float]:
        """Where a point lies."""
        across = (math.log10(intensity) - self.x[0]) / (self.x[1] - self.x[0])
        up = (math.log10(rate) - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def draw(self, drawing: Drawing) -> None:
        """The grid and what stands at it."""
        first = 10.0 ** self.x[0], 10.0 ** self.y[0]
        for exponent in range(self.x[0], self.x[1] + 1):
            x, _ = self.at(10.0**exponent, first[1])
            drawing.line((x, self.top), (x, self.bottom), "grid")
            drawing.text(x, self.bottom + 16, f"{10.0**exponent:g}", "small", "middle")
        for exponent in range(self.y[0], self.y[1] + 1):
            _, y = self.at(first[0], 10.0**exponent)
            drawing.line((self.left, y), (self.right, y), "grid")
            drawing.text(self.left - 6, y + 4, f"{10.0 ** (exponent - 9):g}", "small", "end")
        below = "FLOP a byte (weights, inputs and outputs once)"
        drawing.text((self.left + self.right) / 2, self.bottom + 36, below, "", "middle")
        drawing.text(16, self.top - 14, "GFLOP/s")


def roofline(rows: Sequence[Row], machine: Machine) -> str:
    """Operations a second over operations a byte, both logarithmic, with the two measured roofs."""
    points = [_point(row) for row in rows if TERSOR in row.measured]
    ridge = machine.flops / machine.bandwidth
    axes = _Decades(
        _decades([ridge, *(intensity for _, intensity, _ in points)]),
        _decades([machine.flops, *(rate for _, _, rate in points)]),
    )
    height = max(axes.bottom + 50, TOP + 20 * (len(points) + 1))
    drawing = Drawing(WIDTH, height, "Roofline: what tersor attains of the machine, float32")
    axes.draw(drawing)
    start = max(10.0 ** axes.x[0], 10.0 ** axes.y[0] / machine.bandwidth)
    corners = [axes.at(x, machine.roof(x)) for x in (start, ridge, 10.0 ** axes.x[1])]
    drawing.line(corners[0], corners[1], "line")
    drawing.line(corners[1], corners[2], "line")
    drawing.text(corners[1][0] + 8, corners[1][1] - 6, _roofs(machine), "small")
    for number, (name, intensity, rate) in enumerate(points, start=1):
        x, y = axes.at(intensity, rate)
        says = f"{name}: {rate / 1e9:.0f} GFLOP/s, {rate / machine.roof(intensity):.0%} of the roof"
        drawing.circle(x, y, 8, "c0", says)
        drawing.text(x, y + 3.5, str(number), "small inside", "middle")
        drawing.text(axes.right + 20, TOP + 20 * number - 8, f"{number}  {says}", "small")
    return str(drawing)


def _roofs(machine: Machine) -> str:
    return f"{machine.bandwidth / 1e9:.0f} GB/s, {machine.flops / 1e9:.0f} GFLOP/s"


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around the values, with room below the least."""
    return math.floor(math.log10(min(values) / 2)), math.floor(math.log10(max(values))) + 1


def _point(row: Row) -> tuple[str, float, float]:
    """A model, its operations a byte, and the operations a second that we attain."""
    return row.model, row.workload.flops / row.traffic, row.workload.flops / row.measured[TERSOR].seconds
