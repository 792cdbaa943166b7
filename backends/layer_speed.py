"""The tile models of targets, for passes that choose by speed."""

from __future__ import annotations

from optimizer.layer_speed import AttentionWork, LayerWork, Speed
from optimizer.target import Target

__all__ = ["layer_speed"]


def layer_speed(target: Target) -> Speed | None:
    """What is predicted for layers on a target; `None` where there is no model of it."""
    cpu = target.cpu
    if target.kind != "cpu" or cpu is None:
        return None

    def speed(work: LayerWork | AttentionWork) -> tuple[float, float]:
        from backends.cpu.layer_speed import attention_seconds, predicted_seconds  # TVM, wanted for this alone

        return attention_seconds(work, cpu) if isinstance(work, AttentionWork) else predicted_seconds(work, cpu)

    return speed
