"""`tersor targets`: list the targets, what they need and support, and how they are proved on this machine."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from rich.table import Table

from optimizer.cli.command import Result
from optimizer.errors import TersorError

if TYPE_CHECKING:
    from backends import BackendInfo

SUMMARY = "list the targets, what they need and support"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of which target the operators are wanted by name."""
    parser.add_argument("kind", nargs="?", help='a target such as "cuda", to see its operators by name')


def run(options: argparse.Namespace) -> Result:
    """One row for each target; of a package that cannot be loaded, why.

    Raises:
        TargetError: there is no target of that kind.
    """
    from backends import backend_kinds

    if options.kind is not None:
        return _one(options.kind)
    infos = [_describe(kind) for kind in backend_kinds()]
    table = Table("target", "what it is", "needs", "operators", "precisions", "how it is proved on this machine")
    for info in infos:
        table.add_row(info.name, info.summary, info.needs, str(info.operators), ", ".join(info.precisions), info.proof)
    return [dataclasses.asdict(info) for info in infos], table


def _one(kind: str) -> Result:
    """All of one target, its operators by name."""
    from backends import get_backend

    info = get_backend(kind).describe()
    names = ", ".join(info.operator_names) or "not told"
    table = Table("target", info.name)
    for what, text in (
        ("what it is", info.summary),
        ("needs", info.needs),
        ("precisions", ", ".join(info.precisions)),
        ("how it is proved on this machine", info.proof),
        (f"{info.operators} operators", names),
    ):
        table.add_row(what, text)
    return dataclasses.asdict(info), table


def _describe(kind: str) -> BackendInfo:
    from backends import BackendInfo, get_backend

    try:
        return get_backend(kind).describe()
    except TersorError as error:
        return BackendInfo(kind, f"not available: {error}", "", 0, (), "")
