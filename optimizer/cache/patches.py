"""What a user has put into the modules of a library: functions in the place of its own, and entries of its tables."""

from __future__ import annotations

import sys
import types
from collections.abc import Collection, Iterator
from typing import Any

from optimizer.cache.origin import function_of, is_library, is_users_function, top_level

__all__ = ["replaced_in"]

_DEPTH = 2
"""Tables inside of tables are looked into."""


def replaced_in(packages: Collection[str]) -> list[tuple[str, Any]]:
    """By name, the functions and classes that are not a library's own in all loaded modules of some packages."""
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()
    for name, module in sorted(sys.modules.items()):
        if top_level(name) in packages and isinstance(module, types.ModuleType):
            found += _foreign(dict(vars(module)), name, _DEPTH, seen)
    return found


def _foreign(values: dict[Any, Any], where: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        kind = type(value)
        if kind in _UNINTERESTING or id(value) in seen:
            continue
        if kind in _FUNCTIONS:
            function = function_of(value)
            if isinstance(function, types.FunctionType) and is_users_function(function):
                yield f"{where}.{key}" if type(key) is str else where, value
        elif issubclass(kind, type):
            seen.add(id(value))
            if not is_library(str(value.__module__)):
                yield f"{where}.{key}" if type(key) is str else where, value
            else:
                yield from _foreign(dict(vars(value)), f"{where}.{key}", depth - 1, seen)
        elif depth and kind is dict:
            seen.add(id(value))
            yield from _foreign(dict(value), f"{where}[{key}]" if type(key) is str else where, depth - 1, seen)


_FUNCTIONS = frozenset((types.FunctionType, staticmethod, classmethod, property))
_UNINTERESTING = frozenset((str, int, float, bool, type(None), types.ModuleType, types.BuiltinFunctionType))
