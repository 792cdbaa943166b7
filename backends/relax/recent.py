"""What was found out for the symbolic sizes of the last few runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Generic, TypeVar

__all__ = ["Recent"]

_MOST = 32
"""Sizes that are remembered: as many as the lengths of sentences, or of images, that a server is usually asked for."""

T = TypeVar("T")


class Recent(Generic[T]):
    """Values by symbolic sizes; those that were not asked for longest are forgotten."""

    def __init__(self) -> None:
        self._values: OrderedDict[tuple[tuple[str, int], ...], T] = OrderedDict()

    def get(self, sizes: Mapping[str, int]) -> T | None:
        """The value for these sizes, if it is remembered."""
        key = tuple(sizes.items())
        found = self._values.get(key)
        if found is not None:
            self._values.move_to_end(key)
        return found

    def keep(self, sizes: Mapping[str, int], value: T) -> T:
        """Remember a value; gives it back."""
        self._values[tuple(sizes.items())] = value
        if len(self._values) > _MOST:
            self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
