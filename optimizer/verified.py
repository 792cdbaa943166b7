"""What the verification of a compiled model found, for its report."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.text import decibels

__all__ = ["Verification"]


@dataclass(frozen=True)
class Verification:
    """Whether the compiled model computes what the original does.

    Attributes:
        mode: `"off"`, `"final"` or `"each"`.
        error: The largest relative error of an output; `None` when nothing was compared.
        tolerance: The error that is allowed.
        reason: Why nothing was compared, `""` if it was.
        loss: What quantization costs: the largest relative error of an output against the original model. `error` is
            that against the quantized graph then. `None` for a model that was not quantized.
    """

    mode: str
    error: float | None = None
    tolerance: float | None = None
    reason: str = ""
    loss: float | None = None

    def __str__(self) -> str:
        if self.error is None:
            return f"not verified: {self.reason}{self._loss_text()}"
        form = "" if self.loss is None else "the quantized graph in "
        return (
            f"verified against {form}ONNX Runtime: relative error {self.error:.1e} (allowed: {self.tolerance:.1e})"
            f"{self._loss_text()}"
        )

    def _loss_text(self) -> str:
        if self.loss is None:
            return ""
        return f"; against the original: relative error {self.loss:.1e} (SNR {decibels(self.loss)})"
