"""`tersor targets`: list the targets and what they need."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from rich.table import Table

from optimizer.cli.command import Result
from optimizer.errors import TersorError

if TYPE_CHECKING:
    from backends import BackendInfo

SUMMARY = "list the targets and what they need"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> Result:
    """One row for each target; of a package that cannot be loaded, why."""
    del options
    from backends import backend_kinds

    infos = [_describe(kind) for kind in backend_kinds()]
    table = Table("target", "what it is", "needs", "operators", "precisions", "how results are checked")
    for info in infos:
        table.add_row(info.name, info.summary, info.needs, str(info.operators), ", ".join(info.precisions), info.proof)
    return [dataclasses.asdict(info) for info in infos], table


def _describe(kind: str) -> BackendInfo:
    from backends import BackendInfo, get_backend

    try:
        return get_backend(kind).describe()
    except TersorError as error:
        return BackendInfo(kind, f"not available: {error}", "", 0, (), "")
