"""Where the time of a run goes, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table

from optimizer.executable import KernelTime
from optimizer.text import render, seconds

__all__ = ["Profile"]


@dataclass(frozen=True)
class Profile:
    """Times of all kernels in one run, the slowest first; `str()` and `rich` show a table.

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

    def to_dict(self) -> dict[str, object]:
        """JSON types."""
        rows = [
            {"name": k.name, "nodes": list(k.nodes), "calls": k.calls, "seconds": k.seconds, "share": self.share(k)}
            for k in self.kernels
        ]
        return {"seconds": self.seconds, "kernels": rows}

    def __rich__(self) -> RenderableType:
        table = Table(title=f"One run: {seconds(self.seconds)} in kernels", title_justify="left")
        for name in ("kernel", "calls", "time", "share"):
            table.add_column(name, justify="left" if name == "kernel" else "right")
        table.add_column("nodes", overflow="ellipsis", no_wrap=True, max_width=48)
        for k in self.kernels:
            table.add_row(k.name, str(k.calls), seconds(k.seconds), f"{self.share(k):.1%}", ", ".join(k.nodes))
        return table

    def __str__(self) -> str:
        return render(self.__rich__())
