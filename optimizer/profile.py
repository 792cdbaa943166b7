"""Where the time of a run goes, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table

from optimizer.executable import KernelTime
from optimizer.text import render, seconds

__all__ = ["Profile", "predicted_cells"]


_PEAK = {"arithmetic": "peak"}


def predicted_cells(kernel: KernelTime) -> tuple[str, str]:
    """The predicted time, and how much of the peak or of which bandwidth was reached; empty where nothing is known."""
    forecast = kernel.forecast
    if forecast is None:
        return "", ""
    bound = _PEAK.get(forecast.bound, forecast.bound)
    return seconds(forecast.seconds), f"{forecast.share(kernel.seconds):.0%} of {bound}"


@dataclass(frozen=True)
class Profile:
    """Times of all kernels in one run, the slowest first; `str()` and `rich` show a table.

    Beside each time stands what the tile model predicts, and how much was reached of what bounds the kernel: of the
    peak of all threads, or of the bandwidth of the place that its data comes from (docs/tile-model.md).

    Attributes:
        kernels: One row each.
    """

    kernels: tuple[KernelTime, ...]

    @property
    def seconds(self) -> float:
        """Of all kernels together."""
        return sum(kernel.seconds for kernel in self.kernels)

    def share(self, kernel: KernelTime) -> float:
        """A kernel's part of the whole, from 0 to 1."""
        return kernel.seconds / self.seconds if self.seconds else 0.0

    def reached(self, kernel: KernelTime) -> float | None:
        """A kernel's part of the peak, or of the bandwidth, that bounds it; `None` where nothing is known of it."""
        return None if kernel.forecast is None else kernel.forecast.share(kernel.seconds)

    def to_dict(self) -> dict[str, object]:
        """JSON types."""
        return {"seconds": self.seconds, "kernels": [self._row(kernel) for kernel in self.kernels]}

    def _row(self, kernel: KernelTime) -> dict[str, object]:
        return {
            "name": kernel.name,
            "nodes": list(kernel.nodes),
            "calls": kernel.calls,
            "seconds": kernel.seconds,
            "share": self.share(kernel),
            "forecast": None if kernel.forecast is None else kernel.forecast.to_dict(),
            "reached": self.reached(kernel),
        }

    def __rich__(self) -> RenderableType:
        table = Table(title=f"One run: {seconds(self.seconds)} in kernels", title_justify="left")
        for name in ("kernel", "calls", "time", "share", "predicted", "reached"):
            table.add_column(name, justify="left" if name == "kernel" else "right")
        table.add_column("nodes", overflow="ellipsis", no_wrap=True, max_width=48)
        for k in self.kernels:
            measured = (k.name, str(k.calls), seconds(k.seconds), f"{self.share(k):.1%}")
            table.add_row(*measured, *predicted_cells(k), ", ".join(k.nodes))
        return table

    def __str__(self) -> str:
        return render(self.__rich__())
