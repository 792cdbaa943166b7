"""`tersor passes`: list the passes and their options."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from rich.table import Table

from optimizer.cli.command import Result

SUMMARY = "list the passes and their options"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> Result:
    """One row for each pass."""
    del options
    from passes.registry import PASSES

    rows: list[dict[str, Any]] = [
        {"name": name, "summary": _summary(cls), "options": _options(cls)} for name, cls in PASSES.items()
    ]
    table = Table("pass", "what it does", "options and their defaults")
    for row in rows:
        table.add_row(row["name"], row["summary"], ", ".join(f"{k}={v}" for k, v in row["options"].items()))
    return rows, table


def _options(cls: type[Any]) -> dict[str, Any]:
    """The options and their defaults; data that only code can give are none."""
    return {field.name: field.default for field in dataclasses.fields(cls) if field.compare}


def _summary(cls: type) -> str:
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())
