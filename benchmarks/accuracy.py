"""What quantized models still can do, beside the same models in float32.

    python -m benchmarks.accuracy                              # all tasks
    python -m benchmarks.accuracy --tasks minilm --precisions float32 int8
    python -m benchmarks.accuracy --write                      # into benchmarks/RESULTS.md

`benchmarks/accuracy_tasks.py` has the tasks. The precision "int8" has calibration data, "int8-dynamic" has none and
leaves convolutions as they are; "mixed" is a `PrecisionPolicy` with an error of one percent.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.accuracy_tasks import TASKS, Task
from benchmarks.results import Section, console, versions
from optimizer import CompiledModel, PrecisionPolicy, optimize
from optimizer.ir.weights import weight_bytes
from optimizer.text import size

__all__ = ["PRECISIONS", "SECTION", "Row", "main", "measure"]

PRECISIONS = ("float32", "int8", "int8-dynamic", "int4", "mixed")

SECTION = Section(
    title="What quantized models still can do",
    columns=("task", "score", "precision", "constants", "result", "worse by", "limit"),
    texts=frozenset({"task", "score", "precision"}),
    begin="<!-- begin: written by benchmarks.accuracy -->",
    end="<!-- end of benchmarks.accuracy -->",
)


@dataclass(frozen=True)
class Row:
    """One model in one precision.

    Attributes:
        task: What it is asked.
        precision: One of `PRECISIONS`.
        constants: Bytes.
        score: Of the task.
        worse: By how much it is below float32.
    """

    task: Task
    precision: str
    constants: int
    score: float
    worse: float

    @property
    def cells(self) -> tuple[str, ...]:
        """As text."""
        unit = self.task.unit
        digits = 2 if unit else 4
        limit = self.task.limit
        bound = f"{limit}{unit}" if limit is not None and self.precision.startswith("int8") else ""
        worse = "" if self.precision == "float32" else f"{self.worse:.{digits}f}{unit}"
        return (
            self.task.title, self.task.score, self.precision, size(self.constants), f"{self.score:.{digits}f}{unit}",
            worse, bound,
        )  # fmt: skip


def compiled(task: Task, precision: str, target: str) -> CompiledModel:
    """The model of a task in a precision."""
    options: dict[str, Any] = {"precision": precision}
    if precision == "mixed":
        options["precision"] = PrecisionPolicy(max_error=0.01)
    elif precision == "int8-dynamic":
        options["precision"] = "int8"
    if precision not in ("float32", "int8-dynamic"):
        options["calibration"] = task.calibration
    inputs = task.case.example_inputs
    return optimize(task.case.model, target, example_inputs=inputs, progress=False, cache=False, **options)


def measure(task: Task, precisions: Sequence[str], target: str) -> list[Row]:
    """A row for each precision, float32 first."""
    rows: list[Row] = []
    for precision in dict.fromkeys(("float32", *precisions)):
        model = compiled(task, precision, target)
        score = task.judge(model)
        worse = rows[0].score - score if rows else 0.0
        rows.append(Row(task, precision, weight_bytes(model.graph), score, worse))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=SECTION.title)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--precisions", nargs="+", default=["int8", "int8-dynamic"], choices=PRECISIONS)
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args(arguments)
    out = console()
    rows = []
    for name in options.tasks:
        for row in measure(TASKS[name](), options.precisions, options.target):
            out.print(*row.cells)
            rows.append(row)
    table = [row.cells for row in rows]
    out.print(SECTION.table(table))
    if options.write:
        heading = (
            f"`python -m benchmarks.accuracy`, {time.strftime('%Y-%m-%d')}, target {options.target}; "
            f"{versions('scikit-image', 'pillow')}."
        )
        SECTION.write(SECTION.markdown(heading, table))
        out.print("written to RESULTS.md")


if __name__ == "__main__":
    main()
