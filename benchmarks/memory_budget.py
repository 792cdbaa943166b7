"""Memory budgets: what a run allocates and how long it takes, with and without.

    python -m benchmarks.memory_budget                        # seven models at half and a quarter
    python -m benchmarks.memory_budget unet-1024 --parts 0.3
    python -m benchmarks.memory_budget --write                # into RESULTS.md; other models' rows stay

The budgets are parts of what a run allocates without one. Where a part cannot be met, the smallest budget that can be
is measured, and the part is marked. Each contestant runs in a process of its own, in turn; the ratio of the times is
the median of the rounds, with their quartiles.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from transformers import MobileNetV2Config, ResNetConfig

import models
from benchmarks.contestants import tersor
from benchmarks.results import Section, console
from models import mobilenet, resnet
from models.images import with_classes
from optimizer import CompiledModel, optimize
from optimizer.errors import BudgetError
from optimizer.timing import Build, compete, ratio, relative_error
from passes.tile_memory import figures_of

__all__ = ["MODELS", "SECTION", "main", "measure", "merged"]


def _resnet_512() -> models.ModelCase:
    return resnet.build(with_classes(ResNetConfig()), "resnet-50-512", size=512)


def _mobilenet_640() -> models.ModelCase:
    return mobilenet.build(with_classes(MobileNetV2Config()), "mobilenet-v2-640", size=640)


_LARGER: Mapping[str, Callable[[], models.ModelCase]] = {
    "resnet-50-512": _resnet_512,
    "mobilenet-v2-640": _mobilenet_640,
}
"""Models of the suite with a larger image, since at 224 there is little to save."""

MODELS = (
    "vit-1024", "unet-1024", "resnet-50-512", "bert-base-512", "mobilenet-v2-640", "ppocr-det", "whisper-base-encoder",
)  # fmt: skip
THREADS = 2
SECTION = Section(
    title="Memory budgets",
    columns=(
        "model", "budget, MiB", "predicted, MiB", "allocated, MiB", "part", "ms", "times as long", "predicted",
        "error", "optimize(), s", "measured",
    ),
    texts=frozenset({"model", "measured"}),
    begin="<!-- begin: written by benchmarks.memory_budget -->",
    end="<!-- end of benchmarks.memory_budget -->",
)  # fmt: skip


@dataclass(frozen=True)
class _Within:
    """A model within a budget, or within the smallest that can be met."""

    compiled: CompiledModel
    budget: int | None
    asked: int | None
    seconds: float

    @property
    def allocated(self) -> int:
        memory = self.compiled.report.memory
        assert memory is not None, "sizes are known, and all is compiled"
        return memory.peak

    def shown_budget(self) -> str:
        """In MiB; what was asked for, too, where that cannot be met."""
        if self.budget is None or self.asked is None:
            return "none"
        kept = f"{self.budget / 2**20:.1f}"
        return kept if self.budget == self.asked else f"{kept} ({self.asked / 2**20:.1f} refused)"


def _within(case: models.ModelCase, asked: int | None) -> _Within:
    compile_model = partial(
        optimize, case.model, example_inputs=case.example_inputs, verify="off", cache=False, progress=False
    )
    budget = asked
    start = time.perf_counter()
    try:
        compiled = compile_model(memory_budget=asked)
    except BudgetError as error:
        budget, start = error.smallest, time.perf_counter()
        compiled = compile_model(memory_budget=budget)
    return _Within(compiled, budget, asked, time.perf_counter() - start)


def measure(case: models.ModelCase, parts: Sequence[float], threads: int, rounds: int) -> list[tuple[str, ...]]:
    """A row for the model as it is, and one for each part of what it allocates."""
    given = case.example_inputs
    inputs = [np.asarray(value) for value in (given.values() if isinstance(given, dict) else given)]
    whole = _within(case, None)
    found = [whole, *(_within(case, int(whole.allocated * part)) for part in parts)]
    with tempfile.TemporaryDirectory() as folder:
        builds: dict[str, Build] = {}
        for index, each in enumerate(found):
            artifact = Path(folder) / f"{index}.tersor"
            each.compiled.save(artifact)
            builds[str(index)] = partial(tersor, artifact, inputs, threads)
        measured = compete(builds, rounds)
    before = figures_of(whole.compiled.graph, fused=True)
    rows: list[tuple[str, ...]] = []
    for index, each in enumerate(found):
        mine, first = measured[str(index)], measured["0"]
        figures = figures_of(each.compiled.graph, fused=True)
        share = f"{each.allocated / whole.allocated:.2f}" if index else ""
        of_whole = str(ratio(mine, first)) if index else ""
        predicted = f"{figures.seconds / before.seconds:.2f}" if index else ""
        error = f"{relative_error(mine.outputs, first.outputs):.1e}" if index else ""
        peaks = f"{figures.peak / 2**20:.1f}", f"{each.allocated / 2**20:.1f}"
        times = f"{mine.seconds * 1e3:.1f}", of_whole, predicted
        cells = *peaks, share, *times, error, f"{each.seconds:.1f}", time.strftime("%Y-%m-%d")
        rows.append((case.name, each.shown_budget(), *cells))
    return rows


def merged(new: Sequence[Sequence[str]], kept: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """What was measured now and the rows of other models, in the order of `MODELS`; models beside those come last."""
    measured = {row[0] for row in new}
    rows = [*new, *(row for row in kept if row[0] not in measured)]
    return sorted(rows, key=lambda row: MODELS.index(row[0]) if row[0] in MODELS else len(MODELS))


def _load(name: str) -> models.ModelCase:
    return fixed(_LARGER[name]() if name in _LARGER else models.load(name))


def fixed(case: models.ModelCase) -> models.ModelCase:
    """The model of an ONNX file with the sizes of its example: a budget needs known ones."""
    if not isinstance(case.model, Path) or not isinstance(case.example_inputs, dict):
        return case
    model = onnx.load(case.model)
    for value in model.graph.input:
        array = case.example_inputs[value.name]
        elements = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        value.type.CopyFrom(onnx.helper.make_tensor_type_proto(elements, array.shape))
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return replace(case, model=model)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_budget", description=SECTION.title)
    parser.add_argument("models", nargs="*", default=MODELS, help="names of models (default: %(default)s)")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.5, 0.25], help="of the peak (default: 0.5 0.25)")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of each contestant (default {THREADS})")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant (default 7)")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args(arguments)
    if options.write and options.threads != THREADS:
        parser.error(f"all rows of the table in RESULTS.md are of {THREADS} threads")
    out = console()
    rows: list[tuple[str, ...]] = []
    for name in options.models:
        with out.status(name):
            rows += measure(_load(name), options.parts, options.threads, options.rounds)
        if options.write:
            _write(rows)
    out.print(SECTION.table(rows))
    if options.write:
        out.print("written to RESULTS.md")


def _write(rows: Sequence[Sequence[str]]) -> None:
    heading = (
        f"`python -m benchmarks.memory_budget`: float32, {THREADS} threads. "
        "A budget is a part of what a run allocates without one; where it cannot be met, the smallest that can be "
        "is taken. Predicted: intermediate results and outputs; allocated: with what kernels take for themselves."
    )
    SECTION.write(SECTION.markdown(heading, merged(rows, SECTION.rows())))


if __name__ == "__main__":
    main()
