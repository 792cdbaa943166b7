"""Memory budgets: the peak of a run and its time, with and without.

    python -m benchmarks.memory_budget                        # vit-1024 and unet-1024, at half and a quarter
    python -m benchmarks.memory_budget unet-1024 --parts 0.3
    python -m benchmarks.memory_budget --write                # into benchmarks/RESULTS.md

The budgets are parts of the peak without one. Where a part cannot be reached, the smallest budget that can be is used.
Each contestant runs in a process of its own, in turn. Memory is the highest that the process had during its first call,
less what it had before and less the output.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import models
from benchmarks.contestants import tersor
from benchmarks.long_attention import extra_megabytes
from benchmarks.results import Section, console
from optimizer import CompiledModel, optimize
from optimizer.errors import BudgetError
from optimizer.timing import Build, compete, ratio, relative_error
from passes.tile_memory import figures_of

__all__ = ["MODELS", "SECTION", "main", "measure"]

MODELS = ("vit-1024", "unet-1024")
SECTION = Section(
    title="Memory budgets",
    columns=("model", "budget, MB", "predicted peak, MB", "measured, MB", "ms", "times as long", "predicted", "error"),
    texts=frozenset({"model"}),
    begin="<!-- begin: written by benchmarks.memory_budget -->",
    end="<!-- end of benchmarks.memory_budget -->",
)


def compiled_within(case: models.ModelCase, budget: int | None) -> CompiledModel:
    """The model within a budget, or within the smallest that can be met."""
    options: dict[str, Any] = {"example_inputs": case.example_inputs, "verify": "off", "cache": False}
    compile_model = partial(optimize, case.model, progress=False, **options)
    try:
        return compile_model(memory_budget=budget)
    except BudgetError as error:
        return compile_model(memory_budget=error.smallest)


def measure(case: models.ModelCase, parts: Sequence[float], threads: int, rounds: int) -> list[tuple[str, ...]]:
    """A row for the model as it is, and one for each part of its peak."""
    inputs = [np.asarray(value) for value in case.example_inputs]
    with tempfile.TemporaryDirectory() as folder:
        whole = compiled_within(case, None)
        before = figures_of(whole.graph, fused=True)
        found = [whole, *(compiled_within(case, int(before.peak * part)) for part in parts)]
        builds: dict[str, Build] = {}
        for index, compiled in enumerate(found):
            artifact = Path(folder) / f"{index}.tersor"
            compiled.save(artifact)
            builds[str(index)] = partial(tersor, artifact, inputs, threads)
        memory = [_extra(build) for build in builds.values()]
        measured = compete(builds, rounds)
    rows: list[tuple[str, ...]] = []
    for index, compiled in enumerate(found):
        mine, first = measured[str(index)], measured["0"]
        figures = figures_of(compiled.graph, fused=True)
        budget = f"{before.peak * parts[index - 1] / 1e6:.3g}" if index else "none"
        of_whole = str(ratio(mine, first)) if index else ""
        predicted = f"{figures.seconds / before.seconds:.2f}" if index else ""
        error = f"{relative_error(mine.outputs, first.outputs):.1e}" if index else ""
        peaks = f"{figures.peak / 1e6:.3g}", f"{memory[index]:.0f}"
        rows.append((case.name, budget, *peaks, f"{mine.seconds * 1e3:.0f}", of_whole, predicted, error))
    return rows


def _extra(build: Build) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(extra_megabytes, build).result()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_budget", description=SECTION.title)
    parser.add_argument("models", nargs="*", default=MODELS, help="names of models (default: %(default)s)")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.5, 0.25], help="of the peak (default: 0.5 0.25)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contestant (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default 3)")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args(arguments)
    out = console()
    rows: list[tuple[str, ...]] = []
    for name in options.models:
        with out.status(name):
            rows += measure(models.load(name), options.parts, options.threads, options.rounds)
    out.print(SECTION.table(rows))
    if options.write:
        heading = (
            f"`python -m benchmarks.memory_budget`, {time.strftime('%Y-%m-%d')}: float32, {options.threads} threads. "
            "Where a budget cannot be met, the smallest that can be is measured."
        )
        SECTION.write(SECTION.markdown(heading, rows))
        out.print("written to RESULTS.md")


if __name__ == "__main__":
    main()
