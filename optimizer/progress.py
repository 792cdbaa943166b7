"""What `optimize()` tells while it works, and how long each stage took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.status import Status

__all__ = ["Stages"]


class Stages:
    """Times the stages of a long piece of work, and shows the present one.

    Attributes:
        seconds: Of each stage that has ended, in order.
    """

    def __init__(self, show: bool | None) -> None:
        """Start.

        Args:
            show: Whether to show the stage on standard error; `None` means: if that is a terminal.
        """
        self.seconds: dict[str, float] = {}
        console = Console(stderr=True)
        shown = console.is_terminal if show is None else show
        self._console = console if shown else None
        self._stage = ""
        self._status: Status | None = None

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block as the stage `name`."""
        self._stage = name
        start = time.perf_counter()
        with self._shown():
            yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def detail(self, text: str) -> None:
        """Show what the present stage is doing."""
        if self._console is not None and not self._console.is_terminal:
            self._console.print(f"{self._stage}: {text}", markup=False, highlight=False)
        elif self._status is not None:
            self._status.update(f"{self._stage}: {text}")

    @contextlib.contextmanager
    def _shown(self) -> Iterator[None]:
        if self._console is None:
            yield
        elif self._console.is_terminal:
            with self._console.status(self._stage) as self._status:
                yield
            self._status = None
        else:
            self._console.print(self._stage, markup=False, highlight=False)
            yield
