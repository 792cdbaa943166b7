"""What a `PrecisionPolicy` chose, and why, as a table. Apart from the choice, so that a saved report needs no ONNX."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from optimizer.text import decibels, size

__all__ = ["LayerChoice", "PolicyOutcome", "policy_table"]

_MOST_ROWS = 20


@dataclass(frozen=True)
class LayerChoice:
    """The form of one weight and of the layers that read it.

    Attributes:
        node: The first layer's label.
        operator: What it was before, such as `Conv`.
        form: The form that was chosen, such as `int4-64`.
        reason: Why.
        elements: Of the weight.
        size: Bytes of its constants now.
        size_before: Bytes of them before.
        effects: The relative error of the model's worst output when this layer alone takes a form, by form. In a large
            model, those of all forms but the coarsest follow from the steps between their codes.
        origins: The nodes of the original model that it stands for.
    """

    node: str
    operator: str
    form: str
    reason: str
    elements: int
    size: int
    size_before: int
    effects: Mapping[str, float] = field(default_factory=dict)
    origins: tuple[str, ...] = ()

    @property
    def bits(self) -> float:
        """Of a weight in the mean, scales counted."""
        return 8 * self.size / self.elements

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, operator, form, bits, size, effect, reason: as they are shown."""
        effect = f"{self.effect:.1e}"
        return self.node, self.operator, self.form, f"{self.bits:.3g}", size(self.size), effect, self.reason

    @property
    def effect(self) -> float:
        """What the chosen form costs by itself."""
        return self.effects.get(self.form, 0.0)


@dataclass(frozen=True)
class PolicyOutcome:
    """What was chosen for all layers.

    Attributes:
        budget: What was asked for, to be read.
        size: Bytes of all constants of the model now.
        size_before: Bytes of them before.
        bits: Of a weight in the mean, over the layers that were chosen for, scales counted.
        predicted: The relative error that the layers' own effects add up to.
        error: That of the mixed model, measured in a run of it: on sets that nothing was learned from, if there are
            enough; then with the weights of the search, before those of 4 bits were made from all sets.
        metric: What the user's metric gives for the mixed model, and for the float32 model before it; `None` without.
        layers: In the order of the graph.
    """

    budget: str
    size: int
    size_before: int
    bits: float
    predicted: float
    error: float
    metric: tuple[float, float] | None = None
    layers: tuple[LayerChoice, ...] = ()

    @property
    def largest(self) -> list[LayerChoice]:
        """The layers, those that were largest first."""
        return sorted(self.layers, key=lambda row: (-row.size_before, row.node))

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PolicyOutcome:
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError: The data is no such outcome.
        """
        layers = tuple(LayerChoice(**{**row, "origins": tuple(row["origins"])}) for row in data["layers"])
        metric = None if data["metric"] is None else (data["metric"][0], data["metric"][1])
        return cls(**{**data, "layers": layers, "metric": metric})

    def __str__(self) -> str:
        counts = Counter(row.form for row in self.layers)
        forms = ", ".join(f"{count} in {form}" for form, count in sorted(counts.items()))
        metric = "" if self.metric is None else f", metric {self.metric[0]:.4g} instead of {self.metric[1]:.4g}"
        return (
            f"precision policy, {self.budget}: constants {size(self.size)} instead of {size(self.size_before)}, "
            f"{self.bits:.3g} bits a weight; relative error {self.error:.2g} ({decibels(self.error)}), "
            f"predicted {self.predicted:.2g}{metric}; layers: {forms}"
        )


def policy_table(outcome: PolicyOutcome) -> list[Table | str]:
    """The outcome in a line, the largest layers, and how many more there are."""
    table = Table(title="forms of layers, the largest first", title_justify="left")
    for name in ("layer", "operator", "form"):
        table.add_column(name)
    for name in ("bits", "size", "error of the model, by it alone"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for row in outcome.largest[:_MOST_ROWS]:
        table.add_row(*row.cells)
    more = len(outcome.layers) - _MOST_ROWS
    return [str(outcome), table, *([f"and {more} more layers that are smaller"] if more > 0 else [])]
