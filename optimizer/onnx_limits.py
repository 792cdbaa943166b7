"""What the target "onnx" may use: the newest opset that the runtime knows, and the domains of its operators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.errors import TargetError

__all__ = ["CONTRIB", "STANDARD", "OnnxLimits"]

STANDARD = "ai.onnx"
CONTRIB = "com.microsoft"
"""ONNX Runtime's own operators."""
_OPSETS = range(13, 29)
"""Before, axes of ReduceSum are attributes and Softmax is over several; of later ones nothing is known."""
_INT4_SINCE = 21
_DOMAIN = re.compile(r"[A-Za-z_][\w.\-]*")


@dataclass(frozen=True)
class OnnxLimits:
    """Limits of an optimized graph.

    Attributes:
        opset: The newest version of the standard operators; `None` for the one that the passes work in.
        domains: The domains that operators may be of, the standard one among them; `None` for what the model has.
            Operators of `CONTRIB` are put in where it is named.
    """

    opset: int | None = None
    domains: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, detail: str, target: str) -> OnnxLimits:
        """Read what stands behind `onnx:`, such as `17`, `17+ai.onnx` or `+com.microsoft`.

        Args:
            detail: The text.
            target: The whole target, for errors.

        Raises:
            TargetError: It is malformed, or the opset is out of range.
        """
        opset, *domains = detail.split("+")
        if opset and not (opset.isdecimal() and int(opset) in _OPSETS):
            raise TargetError(
                f"target {target!r}: {opset!r} is no opset from {_OPSETS[0]} to {_OPSETS[-1]}; use 'onnx:17' or alike"
            )
        wrong = [domain for domain in domains if not _DOMAIN.fullmatch(domain)]
        if wrong:
            raise TargetError(f"target {target!r}: {wrong[0]!r} is no operator domain; use 'onnx+{CONTRIB}' or alike")
        given = tuple(dict.fromkeys((STANDARD, *domains))) if domains else None
        return cls(int(opset) if opset else None, given)

    @property
    def contrib(self) -> bool:
        """Whether ONNX Runtime's own operators are asked for."""
        return self.domains is not None and CONTRIB in self.domains

    def precisions(self, available: Sequence[str]) -> tuple[str, ...]:
        """Of the precisions that a runtime computes in, those that the opset has types for."""
        return tuple(p for p in available if p != "int4" or self.opset is None or self.opset >= _INT4_SINCE)

    def __str__(self) -> str:
        opset = "" if self.opset is None else str(self.opset)
        others = () if self.domains is None else [d for d in self.domains if d != STANDARD] or [STANDARD]
        return "+".join((f":{opset}" if opset else "", *others))
