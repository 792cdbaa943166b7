"""`tersor targets`: list the targets and what they need."""

from __future__ import annotations

import argparse
import dataclasses

from rich.table import Table

from optimizer.cli.command import Result

SUMMARY = "list the targets and what they need"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> Result:
    """One row for each target."""
    del options
    from backends import BACKENDS, get_backend

    infos = [get_backend(kind).describe() for kind in sorted(BACKENDS)]
    table = Table("target", "what it is", "needs", "operators", "precisions", "how results are checked")
    for info in infos:
        table.add_row(info.name, info.summary, info.needs, str(info.operators), ", ".join(info.precisions), info.proof)
    return [dataclasses.asdict(info) for info in infos], table
