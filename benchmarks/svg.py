"""A drawing in SVG that follows the reader's light or dark colours."""

from __future__ import annotations

import html
from typing import Literal

__all__ = ["Drawing"]

Anchor = Literal["start", "middle", "end"]

# Okabe and Ito's colours, which the colour-blind can tell apart.
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-size: 15px; font-weight: 600 }
.strong { font-weight: 600 }
.small { font-size: 10px }
.muted { fill: #767676 }
.page { fill: #fff }
.grid { stroke: #ddd }
.line { stroke: #222; stroke-width: 1.5 }
.c0 { fill: #0072b2 }
.c1 { fill: #e69f00 }
.c2 { fill: #009e73 }
.inside { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd }
  .muted { fill: #999 }
  .page { fill: #1b1b1b }
  .grid { stroke: #3a3a3a }
  .line { stroke: #ddd }
  .c0 { fill: #56b4e9 }
  .inside { fill: #111 }
}
"""


class Drawing:
    """Shapes, in the order in which they are drawn; sizes in pixels, from the upper left corner.

    Args:
        width: Of the whole.
        height: Of the whole.
        title: Said by screen readers, and drawn at the top.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self._size = width, height
        self._title = title
        self._shapes: list[str] = []
        self.rectangle(0, 0, width, height, "page")
        self.text(16, 24, title, "title")

    def rectangle(self, x: float, y: float, width: float, height: float, style: str, says: str = "") -> None:
        """A filled rectangle; what it says is shown when the pointer rests on it."""
        shape = f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self._shapes.append(_with_title(shape, "rect", says))

    def circle(self, x: float, y: float, radius: float, style: str, says: str = "") -> None:
        """A filled circle around a point."""
        self._shapes.append(
            _with_title(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"', "circle", says)
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], style: str) -> None:
        """A straight line."""
        (x1, y1), (x2, y2) = start, end
        self._shapes.append(f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def text(self, x: float, y: float, words: str, style: str = "", anchor: Anchor = "start") -> None:
        """Words on a baseline, which start, end or have their middle at `x`."""
        self._shapes.append(
            f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'
        )

    def __str__(self) -> str:
        width, height = self._size
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" aria-label="{html.escape(self._title)}">'
        )
        return "\n".join([opening, f"<style>{_STYLE}</style>", *self._shapes, "</svg>", ""])


def _with_title(shape: str, element: str, says: str) -> str:
    return f"{shape}><title>{html.escape(says)}</title></{element}>" if says else f"{shape}/>"
