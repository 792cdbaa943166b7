"""What the tile model says of a kernel before it runs, and how near a measured time is to what the machine allows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Forecast"]


@dataclass(frozen=True)
class Forecast:
    """The calls of one kernel in one run, as predicted.

    Attributes:
        seconds: How long they take.
        flops: Floating-point operations.
        bytes: That they read and write, each address counted once.
        bound: What takes longest: "arithmetic", or the place that the bytes come from: "L2", "L3" or "memory".
        limit: Seconds that the peak or the bandwidth of `bound` would allow, if nothing else took time.
    """

    seconds: float
    flops: int
    bytes: int
    bound: str
    limit: float

    def share(self, seconds: float) -> float:
        """How much of the peak, or of the bandwidth, was reached in so many seconds; 1 is all of it."""
        return self.limit / seconds if seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)
