"""Targets that other packages bring along: entry points of the group `tersor.backends`.

The name of an entry point is the kind of the target, its object a class that implements `backends.base.Backend`;
docs/writing-a-backend.md has one. Nothing of such a package is imported until its target is used.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from optimizer.errors import TargetError

__all__ = ["GROUP", "load_plugin", "plugin_kinds", "plugin_package"]

GROUP = "tersor.backends"


def plugin_kinds() -> dict[str, metadata.EntryPoint]:
    """Kind -> entry point. Of two packages with the same kind the first on the path counts, as for modules."""
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=GROUP):
        found.setdefault(point.name, point)
    return found


def plugin_package(kind: str) -> str:
    """The name and version of the package that brings a kind of target."""
    point = plugin_kinds()[kind]
    return "an unnamed package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def load_plugin(kind: str, members: tuple[str, ...]) -> Any:
    """An instance of the class behind a kind of target.

    Args:
        kind: One of `plugin_kinds`.
        members: What it must have.

    Raises:
        TargetError: The package cannot be imported, or holds no such class.
    """
    point = plugin_kinds()[kind]
    where = f"the target {kind!r} of {plugin_package(kind)} cannot be loaded"
    try:
        backend = point.load()()
    except Exception as error:  # whatever the code of somebody else raises
        reason = (str(error).splitlines() or [""])[0]
        raise TargetError(f"{where}: {type(error).__name__}: {reason}; mend or remove the package") from error
    missing = [name for name in members if not hasattr(backend, name)]
    if missing:
        raise TargetError(f"{where}: {point.value} lacks {', '.join(missing)}; see backends.base.Backend")
    if backend.name != kind:
        raise TargetError(f"{where}: {point.value} calls itself {backend.name!r}; the entry point must have that name")
    return backend
