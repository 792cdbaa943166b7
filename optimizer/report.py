"""What was done to a model: pass by pass, stage by stage, and what came of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from optimizer.activation_memory import ActivationMemory
from optimizer.atomic_file import atomic_write
from optimizer.cache_record import CacheRecord
from optimizer.energy import ASSUMPTIONS, MODEL, Energy, estimate_energy
from optimizer.errors import InputError
from optimizer.ir.figures import Costs
from optimizer.layer_errors import LayerError, layer_table
from optimizer.policy_outcome import PolicyOutcome, policy_table
from optimizer.profile import Profile
from optimizer.text import count, joules, render, seconds, size
from optimizer.tuning import Tuning
from optimizer.usage import Usage
from optimizer.verified import Verification

__all__ = ["NearMissRow", "PassRow", "Report", "Verification"]

_MOST_REASONS = 10
_UNVERIFIED = Verification("off", reason='verify="off"')


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
class NearMissRow:
    """A place where a fusion nearly fired.

    Attributes:
        pass_name: The fusion.
        node: The node at which the match began.
        reason: The first condition that does not hold.
        origins: The nodes of the original model that the node stands for.
    """

    pass_name: str
    node: str
    reason: str
    origins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything that `optimize()` did.

    `str()` and `rich` show tables, `to_dict()` and `to_json()` give the numbers, `save()` writes a page with charts.

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
        usage_before: Where work and memory of the original graph go; `None` in a report that does not say.
        usage: The same of the optimized graph.
        near_misses: Where a fusion nearly fired, and why it did not.
        cached: When it was made, if it is from the cache; `stages` are then those of this call.
        memory: What a run allocates, for the sizes of the verification; `None` where that is not known.
        layers: What the rounding of each quantized layer costs, those that cost most first.
        tuning: What measuring came to, if `tune` was given.
        policy: What a precision policy chose, if one was given.
    """

    target: str
    precision: str
    before: Costs
    after: Costs
    passes: tuple[PassRow, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    verification: Verification = _UNVERIFIED
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    profile: Profile | None = None
    usage_before: Usage | None = None
    usage: Usage | None = None
    near_misses: tuple[NearMissRow, ...] = ()
    cached: CacheRecord | None = None
    memory: ActivationMemory | None = None
    layers: tuple[LayerError, ...] = ()
    tuning: Tuning | None = None
    policy: PolicyOutcome | None = None

    @property
    def seconds(self) -> float:
        """Of all stages together."""
        return sum(self.stages.values())

    def with_profile(self, profile: Profile) -> Report:
        """The same with times of kernels."""
        return dataclasses.replace(self, profile=profile)

    @property
    def energy(self) -> Energy | None:
        """The estimated energy of one run of the optimized graph."""
        return None if self.usage is None else estimate_energy(self.usage)

    @property
    def energy_before(self) -> Energy | None:
        """The same of the original graph."""
        return None if self.usage_before is None else estimate_energy(self.usage_before)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page with charts (`.html`) or the data (`.json`).

        Raises:
            InputError: The name ends in something else.
            ArtifactError: The file cannot be written; nothing is left behind.
        """
        from optimizer.report_page import page_of

        target = Path(path)
        if target.suffix not in (".html", ".json"):
            raise InputError(f"a report is saved as .html or .json, not as {str(target)!r}")
        content = page_of(self) if target.suffix == ".html" else self.to_json()
        with atomic_write(target) as file:
            file.write(content.encode())

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
            "usage_before": None if self.usage_before is None else self.usage_before.to_dict(),
            "usage": None if self.usage is None else self.usage.to_dict(),
            "energy": _energy_dict(self.energy_before, self.energy),
            "near_misses": [dataclasses.asdict(row) for row in self.near_misses],
            "cached": None if self.cached is None else self.cached.to_dict(),
            "memory": None if self.memory is None else self.memory.to_dict(),
            "layers": [row.to_dict() for row in self.layers],
            "tuning": None if self.tuning is None else self.tuning.to_dict(),
            "policy": None if self.policy is None else self.policy.to_dict(),
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
            usage_before=_usage(data.get("usage_before")),
            usage=_usage(data.get("usage")),
            near_misses=tuple(
                NearMissRow(**{**row, "origins": tuple(row["origins"])}) for row in data.get("near_misses", ())
            ),
            cached=None if data.get("cached") is None else CacheRecord.from_dict(data["cached"]),
            memory=None if data.get("memory") is None else ActivationMemory.from_dict(data["memory"]),
            layers=tuple(map(LayerError.from_dict, data.get("layers", ()))),
            tuning=None if data.get("tuning") is None else Tuning.from_dict(data["tuning"]),
            policy=None if data.get("policy") is None else PolicyOutcome.from_dict(data["policy"]),
        )

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [f"target {self.target}, precision {self.precision}", _pass_table(self)]
        parts.append("stages: " + ", ".join(f"{name} {seconds(time)}" for name, time in self.stages.items()))
        parts.append(str(self.verification))
        if self.cached is not None:
            parts.append(str(self.cached))
        if self.memory is not None:
            parts.append(str(self.memory))
        if self.tuning is not None:
            parts.append(str(self.tuning))
        if self.energy is not None:
            parts.append(_energy_text(self.energy_before, self.energy, "at least " if self.after.symbolic else ""))
        parts.extend(policy_table(self.policy) if self.policy is not None else ())
        parts.extend(layer_table(self.layers) if self.layers else ())
        parts.extend(_near_miss_texts(self.near_misses))
        parts.extend(f"note: {note}" for note in self.notes)
        if self.profile is not None:
            parts.append(self.profile)
        return Group(*parts)

    def __str__(self) -> str:
        return render(self.__rich__())


def _usage(data: Mapping[str, Any] | None) -> Usage | None:
    return None if data is None else Usage.from_dict(data)


def _energy_dict(before: Energy | None, after: Energy | None) -> dict[str, Any] | None:
    if after is None:
        return None
    return {
        "unit": "joules an inference, estimated",
        "model": MODEL,
        "assumptions": list(ASSUMPTIONS),
        "before": None if before is None else before.to_dict(),
        "after": after.to_dict(),
    }


def _energy_text(before: Energy | None, after: Energy, least: str) -> str:
    was = "" if before is None else f", {joules(before.total)} before"
    parts = f"arithmetic {joules(after.arithmetic)}, weights {joules(after.weights)}"
    return (
        f"estimated energy of a run: {least}{joules(after.total)} ({parts}, "
        f"activations {joules(after.activations)}{was}; model: {MODEL})"
    )


def _near_miss_texts(rows: tuple[NearMissRow, ...]) -> list[str]:
    """One line for each fusion and reason, with the first node."""
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        alike.setdefault((row.pass_name, row.reason), []).append(row.node)
    lines = [
        f"{name} did not fire at {nodes[0]}{f' and {len(nodes) - 1} more' if len(nodes) > 1 else ''}: {reason}"
        for (name, reason), nodes in alike.items()
    ]
    more = len(lines) - _MOST_REASONS
    return lines if more <= 0 else [*lines[:_MOST_REASONS], f"and {more} more reasons why a fusion did not fire"]


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
