"""Choices that were measured: what `tune=` found out on this machine, kept beside the compiled models.

One file for each processor, number of cores, precision and version of this package and of TVM. What is in it has no
effect on results: the code generator takes a value only where it is one of those that it offers itself.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optimizer.atomic_file import atomic_write
from optimizer.cache.key import machine_facts
from optimizer.cache.store import TUNING_FOLDER, Store
from optimizer.cpus import Cpu
from optimizer.errors import ArtifactError
from optimizer.versions import versions

__all__ = ["Winner", "Winners"]

_FORMAT = 1
_PACKAGES = ("tersor", "apache-tvm")
_MOST_BYTES = 4 * 2**20
"""Some 40,000 choices; a larger file is begun anew."""


@dataclass(frozen=True)
class Winner:
    """What is known of a choice.

    Attributes:
        value: The best one.
        ratio: The time of its kernels over that with the analytic value; 1 where that is the best.
        tried: The values that were measured.
        confirmed: Whether it was measured a second time, with all other winners of a model; used are only those.
    """

    value: int
    ratio: float
    tried: tuple[int, ...]
    confirmed: bool = True


class Winners:
    """The choices by key, in memory and on disk."""

    def __init__(self, store: Store | None, cpu: Cpu, precision: str) -> None:
        """Read what is known.

        Args:
            store: The cache; `None` to know nothing and to keep nothing.
            cpu: The processor, with its cores.
            precision: Of the model; the same sizes may be another kernel in another.
        """
        found = versions()
        facts = [repr(cpu), precision, *machine_facts(), *(f"{name} {found.get(name)}" for name in _PACKAGES)]
        name = hashlib.sha256("\n".join(facts).encode()).hexdigest()
        self.path = None if store is None else store.folder / TUNING_FOLDER / f"{name}.json"
        self._store = store
        self.known: dict[str, Winner] = {} if self.path is None else _read(self.path)

    @property
    def values(self) -> dict[str, int]:
        """The best values by key, those that are sure."""
        return {key: winner.value for key, winner in self.known.items() if winner.confirmed}

    def keep(self, new: dict[str, Winner]) -> bool:
        """Remember choices, and write them; what another process wrote meanwhile stays.

        Returns:
            Whether they are on disk.
        """
        self.known |= new
        if self.path is None or self._store is None:
            return False
        known = _read(self.path) | self.known
        content = _content(known)
        content = content if len(content) <= _MOST_BYTES else _content(self.known)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if len(content) > self._store.limit:
                return False
            with atomic_write(self.path, private=True) as file:
                file.write(content)
        except (ArtifactError, OSError):  # a cache that cannot be written is none
            return False
        return True


def _content(known: dict[str, Winner]) -> bytes:
    winners = {key: asdict(winner) for key, winner in sorted(known.items())}
    return json.dumps({"format": _FORMAT, "winners": winners}, indent=1).encode()


def _read(path: Path) -> dict[str, Winner]:
    """What a file holds; nothing of one that is damaged, which the next `keep` replaces."""
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != _FORMAT:
            return {}
        return {str(key): _winner(entry) for key, entry in data["winners"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def _winner(entry: dict[str, Any]) -> Winner:
    ratio = float(entry["ratio"])
    if not (math.isfinite(ratio) and ratio > 0):
        raise ValueError("no ratio")
    tried = tuple(int(value) for value in entry["tried"])
    return Winner(int(entry["value"]), ratio, tried, bool(entry["confirmed"]))
