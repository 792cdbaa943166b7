"""`tersor cache`: what the cache of compiled models holds, and away with it."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from optimizer.cli.command import Result
from optimizer.errors import ArtifactError, InputError
from optimizer.text import size

SUMMARY = "list or clear the cache of compiled models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do, and with which folder."""
    parser.add_argument("action", nargs="?", choices=("list", "size", "clear"), default="list", help="default: list")
    parser.add_argument("--folder", type=Path, help="of the cache (default: $TERSOR_CACHE, or that of the user)")


def run(options: argparse.Namespace) -> Result:
    """One row for each compiled model, the last used first; or what is left after clearing."""
    from optimizer.cache import open_store
    from optimizer.cache.store import Unusable

    try:
        store = open_store(True if options.folder is None else options.folder)
    except Unusable as reason:
        raise InputError(f"there is no cache: {reason}; name its folder with --folder") from reason
    if store is None:
        raise InputError("there is no cache: TERSOR_CACHE is off; name its folder with --folder")
    data: dict[str, Any] = {"folder": str(store.folder)}
    if options.action == "clear":
        try:
            removed = store.clear()
        except OSError as error:
            raise ArtifactError(f"cannot clear {str(store.folder)!r}: {error.strerror or error}") from error
        data |= {"removed": len(removed), "bytes": sum(entry.bytes for entry in removed)}
        return data, f"removed {_models(len(removed))}, {size(data['bytes'])}, from {store.folder}"
    entries = store.entries()[::-1]
    data |= {"models": len(entries), "bytes": store.bytes, "limit": store.limit if entries else None}
    total = f"{_models(len(entries))}, {size(data['bytes'])}, in {store.folder}"
    if options.action == "size" or not entries:
        return data, total
    table = Table("key", "model", "size", "compiled in", "made", "last used", caption=total, caption_justify="left")
    data["entries"] = []
    for entry in entries:
        record = entry.record()
        used = datetime.datetime.fromtimestamp(entry.used, datetime.UTC).replace(microsecond=0).isoformat()
        row = {"file": entry.path.name, "bytes": entry.bytes, "used": used}
        data["entries"].append(row | ({} if record is None else record.to_dict()))
        facts = ["damaged", ""] if record is None else [record.model, f"{record.seconds:.3g} s"]
        made = "" if record is None else _shown(record.made)
        table.add_row(entry.path.name[:12], facts[0], size(entry.bytes), facts[1], made, _shown(used))
    return data, table


def _models(number: int) -> str:
    return f"{number} compiled model{'' if number == 1 else 's'}"


def _shown(moment: str) -> str:
    return moment.replace("T", " ").replace("+00:00", " UTC")
