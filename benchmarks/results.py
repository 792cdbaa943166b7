"""A table of results: for the terminal, and between its markers in RESULTS.md."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from optimizer.atomic_file import atomic_write
from optimizer.errors import InputError

__all__ = ["RESULTS", "Section", "console", "versions"]

RESULTS = Path(__file__).with_name("RESULTS.md")
WIDTH = 150
"""Columns of what is not a terminal."""


@dataclass(frozen=True)
class Section:
    """What one benchmark shows.

    Attributes:
        title: Stands above the table in a terminal.
        columns: The names of the columns.
        texts: Those of them that hold text; the others are aligned as numbers.
        begin: The line before the section in the file.
        end: The line after it.
    """

    title: str
    columns: tuple[str, ...]
    texts: frozenset[str]
    begin: str
    end: str

    def table(self, rows: Iterable[Sequence[str]]) -> Table:
        """The rows for a terminal."""
        result = Table(title=self.title, title_justify="left")
        for column in self.columns:
            result.add_column(column, justify="left" if column in self.texts else "right")
        for row in rows:
            result.add_row(*map(escape, row))
        return result

    def markdown(self, heading: str, rows: Iterable[Sequence[str]]) -> str:
        """The rows for the file, below what says how they were measured."""
        ruler = ("---" if column in self.texts else "---:" for column in self.columns)
        lines = (f"| {' | '.join(cells)} |" for cells in (self.columns, *rows))
        return "\n".join([heading, "", next(lines), f"|{'|'.join(ruler)}|", *lines])

    def rows(self, path: Path = RESULTS) -> list[list[str]]:
        """The rows that stand between the markers of a file, if they have these columns."""
        _, _, rest = path.read_text(encoding="utf-8").partition(self.begin)
        lines = [line for line in rest.partition(self.end)[0].splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        return cells[2:] if cells[:1] == [list(self.columns)] else []

    def write(self, text: str, path: Path = RESULTS) -> None:
        """Put `text` between the markers of a file, which is changed as a whole or not at all.

        Raises:
            InputError: A marker is missing, is there twice, or they are in the wrong order.
            ArtifactError: The file cannot be written.
        """
        before, begin, rest = path.read_text(encoding="utf-8").partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not begin or not end or self.begin in rest or self.end in before + after:
            raise InputError(f"{str(path)!r} needs one line {self.begin!r} and after it one line {self.end!r}")
        with atomic_write(path) as file:
            file.write(f"{before}{begin}\n{text}\n{end}{after}".encode())


def console() -> Console:
    """Where the results are shown, wide enough for a row when it is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def versions(*distributions: str) -> str:
    """The versions of what is installed, for the heading."""
    found = {name: _version(name) for name in distributions}
    return ", ".join(f"{name} {version}" if version else f"{name} (not installed)" for name, version in found.items())


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
