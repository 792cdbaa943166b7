"""What was done to a model: pass by pass, stage by stage, and what came of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from optimizer.ir.figures import Costs
from optimizer.profile import Profile
from optimizer.text import count, render, seconds, size

__all__ = ["PassRow", "Report", "Verification"]


@dataclass(frozen=True)
class PassRow:
    """One run of one pass.

    Attributes:
        name: The pass, with its options.
        modified: Whether it changed the model.
        seconds: How long it took.
        before: The model's costs before it.
        after: The model's costs after it.
        error: The relative error against the original model after it; `None` when that was not measured.
    """

    name: str
    modified: bool
    seconds: float
    before: Costs
    after: Costs
    error: float | None = None


@dataclass(frozen=True)
class Verification:
    """Whether the compiled model computes what the original does.

    Attributes:
        mode: `"off"`, `"final"` or `"each"`.
        error: The largest relative error of an output; `None` when nothing was compared.
        tolerance: The error that is allowed.
        reason: Why nothing was compared, `""` if it was.
    """

    mode: str
    error: float | None = None
    tolerance: float | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.error is None:
            return f"not verified: {self.reason}"
        return f"verified against ONNX Runtime: relative error {self.error:.1e} (allowed: {self.tolerance:.1e})"


@dataclass(frozen=True)
class Report:
    """Everything that `optimize()` did; `str()` and `rich` show tables, `to_dict()` and `to_json()` give the numbers.

    Attributes:
        target: What it was compiled for.
        precision: The precision asked for.
        before: Costs of the model as it came in.
        after: Costs of the optimized graph.
        passes: One row for each run of a pass.
        stages: Seconds of each stage, in order.
        verification: How far the result is from the original.
        notes: What else is worth knowing, such as parts that run in ONNX Runtime, and why.
        versions: Of the packages that made the result.
        profile: Times of kernels, once `CompiledModel.profile` was called.
    """

    target: str
    precision: str
    before: Costs
    after: Costs
    passes: tuple[PassRow, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    verification: Verification = Verification("off", reason='verify="off"')
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    profile: Profile | None = None

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(self.stages.values())

    def with_profile(self, profile: Profile) -> Report:
        """The same with times of kernels."""
        return dataclasses.replace(self, profile=profile)

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "target": self.target,
            "precision": self.precision,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "passes": [_row_dict(row) for row in self.passes],
            "stages": dict(self.stages),
            "seconds": self.seconds,
            "verification": dataclasses.asdict(self.verification),
            "notes": list(self.notes),
            "versions": dict(self.versions),
            "profile": None if self.profile is None else self.profile.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`; a profile is not read back.

        Raises:
            KeyError, TypeError: The data is not such a report.
        """
        rows = [{**row, "before": Costs(**row["before"]), "after": Costs(**row["after"])} for row in data["passes"]]
        return cls(
            target=data["target"],
            precision=data["precision"],
            before=Costs(**data["before"]),
            after=Costs(**data["after"]),
            passes=tuple(PassRow(**row) for row in rows),
            stages=dict(data["stages"]),
            verification=Verification(**data["verification"]),
            notes=tuple(data["notes"]),
            versions=dict(data["versions"]),
        )

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [f"target {self.target}, precision {self.precision}", _pass_table(self)]
        parts.append("stages: " + ", ".join(f"{name} {seconds(time)}" for name, time in self.stages.items()))
        parts.append(str(self.verification))
        parts.extend(f"note: {note}" for note in self.notes)
        if self.profile is not None:
            parts.append(self.profile)
        return Group(*parts)

    def __str__(self) -> str:
        return render(self.__rich__())


def _row_dict(row: PassRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "modified": row.modified,
        "seconds": row.seconds,
        "before": row.before.to_dict(),
        "after": row.after.to_dict(),
        "error": row.error,
    }


def _pass_table(report: Report) -> Table:
    """One line for each pass that changed something; the others are summed up in one."""
    table = Table()
    table.add_column("pass")
    for name in ("nodes", "parameters", "bytes", "FLOPs", "peak activations", "time", "error"):
        table.add_column(name, justify="right")
    table.add_row("the model as it came", *_cost_cells(report.before), "", "")
    for row in (row for row in report.passes if row.modified):
        table.add_row(row.name, *_change_cells(row.before, row.after), seconds(row.seconds), _error(row.error))
    idle = [row for row in report.passes if not row.modified]
    if idle:
        text = f"{len(idle)} passes that found nothing"
        table.add_row(text, *[""] * 5, seconds(sum(row.seconds for row in idle)), "")
    table.add_section()
    table.add_row(
        "total", *_cost_cells(report.after), seconds(report.seconds), _error(report.verification.error), style="bold"
    )
    return table


def _cost_cells(costs: Costs) -> list[str]:
    least = "≥ " if costs.symbolic else ""
    return [
        str(costs.nodes),
        count(costs.parameters),
        size(costs.bytes),
        least + count(costs.flops),
        least + size(costs.peak_activation_bytes),
    ]


def _change_cells(before: Costs, after: Costs) -> list[str]:
    """What a pass changed, with its sign; nothing where it changed nothing."""

    def cell(attribute: str, text: Any) -> str:
        difference = getattr(after, attribute) - getattr(before, attribute)
        return "" if not difference else f"{'+' if difference > 0 else '-'}{text(abs(difference))}"

    formats = {"nodes": str, "parameters": count, "bytes": size, "flops": count, "peak_activation_bytes": size}
    return [cell(attribute, text) for attribute, text in formats.items()]


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"
