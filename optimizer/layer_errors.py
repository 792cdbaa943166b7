"""What the rounding of each layer costs, as a table. `optimizer.quantization_report` measures it.

Apart, so that a saved report needs no ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from optimizer.text import decibels

__all__ = ["LayerError", "layer_table", "ranked"]

_MOST_ROWS = 10


@dataclass(frozen=True)
class LayerError:
    """A layer with a rounded weight.

    Attributes:
        node: Its label.
        operator: What it was before, such as `Conv`.
        weight: The type of its weight now, such as `int8`.
        error: The relative error of what it gives, when what it reads is exact.
        effect: The relative error of the model's worst output when this layer alone is quantized; `None` where that was
            not measured.
        origins: The nodes of the original model that it stands for.
    """

    node: str
    operator: str
    weight: str
    error: float
    effect: float | None = None
    origins: tuple[str, ...] = ()

    @property
    def cost(self) -> float:
        """What the ranking goes by: the effect, and the layer's own error where that is not known."""
        return self.error if self.effect is None else self.effect

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerError:
        """The inverse of `to_dict`.

        Raises:
            TypeError: The data is no such row.
        """
        return cls(**{**data, "origins": tuple(data.get("origins", ()))})

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, operator, weight, signal to noise, effect: as they are shown."""
        effect = "" if self.effect is None else f"{self.effect:.1e}"
        return self.node, self.operator, self.weight, decibels(self.error), effect


def ranked(rows: Sequence[LayerError]) -> list[LayerError]:
    """The layers, those that cost most first."""
    return sorted(rows, key=lambda row: (row.effect is None, -row.cost, row.node))


def layer_table(rows: Sequence[LayerError]) -> list[Table | str]:
    """The layers that cost most, and how many more there are."""
    table = Table(title="quantized layers, those that cost most first", title_justify="left")
    for name in ("layer", "operator", "weight"):
        table.add_column(name)
    for name in ("SNR of what it gives", "error of the model, by it alone"):
        table.add_column(name, justify="right")
    for row in ranked(rows)[:_MOST_ROWS]:
        table.add_row(*row.cells)
    more = len(rows) - _MOST_ROWS
    return [table, f"and {more} more quantized layers that cost less"] if more > 0 else [table]
