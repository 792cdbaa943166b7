"""What a result from the cache says of itself."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.text import seconds

__all__ = ["CacheRecord"]


@dataclass(frozen=True)
class CacheRecord:
    """Where a compiled model that was not compiled anew comes from.

    Attributes:
        key: The digest of all that the result depends on.
        model: What the model was: the name of a file or of a class.
        made: When it was compiled and checked, in UTC, as in ISO 8601.
        seconds: How long that took.
        seed: Of the inputs that it was checked with.
    """

    key: str
    model: str
    made: str
    seconds: float
    seed: int

    @classmethod
    def now(cls, key: str, model: str, seconds: float, seed: int) -> CacheRecord:
        """Of a result that was made just now."""
        made = datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()
        return cls(key, model, made, seconds, seed)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CacheRecord:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError, ValueError: The data is no such record.
        """
        return cls(str(data["key"]), str(data["model"]), str(data["made"]), float(data["seconds"]), int(data["seed"]))

    def __str__(self) -> str:
        when = self.made.replace("T", " ").replace("+00:00", " UTC")
        return f"from the cache: compiled in {seconds(self.seconds)} and checked on {when} with seed {self.seed}"
