"""Charts as inline SVG: bars, one bar cut into parts, and a line over time. Colours come from the page's style."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Part", "bar", "line_chart", "parts_bar"]

_WIDTH, _HEIGHT = 720, 190
_LEFT, _TOP, _BOTTOM = 66, 12, 22
_COLOURS = 8


@dataclass(frozen=True)
class Part:
    """One part of a bar.

    Attributes:
        label: What it is.
        amount: How much.
        text: The amount, to be read.
    """

    label: str
    amount: float
    text: str


def bar(share: float, colour: int = 0) -> str:
    """A bar for a cell of a table; `share` is from 0 to 1."""
    width = 100 * min(max(share, 0.0), 1.0)
    opening = '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
    return f"{opening}{_rect(0, width, 8, colour)}</svg>"


def parts_bar(parts: Sequence[Part], whole: float | None = None, first_colour: int = 0) -> str:
    """One bar cut into parts, with a legend.

    Args:
        parts: In order.
        whole: What the full width stands for; all parts together when not given.
        first_colour: The others follow.
    """
    total = whole or sum(part.amount for part in parts) or 1.0
    pieces, at = [], 0.0
    for i, part in enumerate(parts):
        width = 100 * part.amount / total
        title = f"<title>{html.escape(part.label)}: {html.escape(part.text)}</title>"
        pieces.append(_rect(at, width, 14, first_colour + i, title))
        at += width
    legend = "".join(
        f'<li><svg class="key" viewBox="0 0 1 1" aria-hidden="true">{_rect(0, 1, 1, first_colour + i)}</svg>'
        f"{html.escape(part.label)} <b>{html.escape(part.text)}</b></li>"
        for i, part in enumerate(parts)
    )
    name = html.escape("; ".join(f"{part.label} {part.text}" for part in parts))
    return (
        f'<svg class="parts" viewBox="0 0 100 14" preserveAspectRatio="none" role="img" aria-label="{name}">'
        f'{"".join(pieces)}</svg><ul class="legend">{legend}</ul>'
    )


def line_chart(series: Sequence[tuple[str, Sequence[float]]], text: Callable[[float], str], across: str) -> str:
    """Areas and lines over the order of execution.

    Args:
        series: A name and the points of each; each is stretched over the whole width. The last one is in front.
        text: How an amount is written.
        across: What the horizontal axis is.
    """
    most = max((max(points, default=0.0) for _, points in series), default=0.0) or 1.0
    lines = [_grid(most, text)]
    floor = _HEIGHT - _BOTTOM
    for i, (name, points) in enumerate(series):
        corners = _corners(points, most)
        if not corners:
            continue
        path = " ".join(f"{'L' if j else 'M'}{x:.1f} {y:.1f}" for j, (x, y) in enumerate(corners))
        kind = "line was"
        if i == len(series) - 1:
            kind = "line"
            below = f"L{corners[-1][0]:.1f} {floor} L{corners[0][0]:.1f} {floor} Z"
            lines.append(f'<path class="area" d="{path} {below}"/>')
        lines.append(f'<path class="{kind}" d="{path}"><title>{html.escape(name)}</title></path>')
    name = html.escape("; ".join([*(name for name, _ in series), across]))
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">{"".join(lines)}'
        f"{_label(_WIDTH - 4, _HEIGHT - 6, across + ' →')}</svg>"
    )


def _grid(most: float, text: Callable[[float], str]) -> str:
    lines = []
    for share in (0.0, 0.5, 1.0):
        y = _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(_label(_LEFT - 6, y + 4, text(most * share)))
    return "".join(lines)


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="end">{html.escape(text)}</text>'


def _corners(points: Sequence[float], most: float) -> list[tuple[float, float]]:
    """A step for each point."""
    wide, high = (_WIDTH - _LEFT) / max(len(points), 1), _HEIGHT - _TOP - _BOTTOM
    return [
        (_LEFT + (i + end) * wide, _TOP + (1 - point / most) * high) for i, point in enumerate(points) for end in (0, 1)
    ]


def _rect(x: float, width: float, height: float, colour: int, inside: str = "") -> str:
    return f'<rect class="c{colour % _COLOURS}" x="{x:.3f}" width="{width:.3f}" height="{height}">{inside}</rect>'
