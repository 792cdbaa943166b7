"""Seven models beside ONNX Runtime: latency, `optimize()` time and its peak memory.

    python -m benchmarks.suite                     # all, printed
    python -m benchmarks.suite --models minilm     # one
    python -m benchmarks.suite --write             # all, into benchmarks/RESULTS.md

Latency is measured by `optimizer.timing`: both contestants in processes of their own, in turn. `optimize()` runs in
a fresh process, with the model already loaded. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.contestants import onnx_runtime, tersor
from benchmarks.memory import PeakMemory
from benchmarks.results import RESULTS, Section, console, versions
from optimizer.timing import ContestantFailed, Measurement, Ratio, compete, ratio, relative_error

MODELS = ("bert-base", "minilm", "vit-b16", "resnet-50", "mobilenet-v2", "ppocr-rec", "efficientnet-lite0")
COLUMNS = (
    "model",
    "ONNX Runtime ms",
    "tersor ms",
    "ratio (quartiles)",
    "relative error",
    "optimize() s",
    "peak MB",
    "limit MB",
    "fallback",
)
SECTION = Section(
    "Latency beside ONNX Runtime's",
    COLUMNS,
    texts=frozenset({"model"}),
    begin="<!-- begin: written by make bench -->",
    end="<!-- end -->",
)

Answer = TypeVar("Answer")
Job = tuple[Answer, Callable[[], object]]
"""What a process is measured for, and what it does afterwards, when its memory is no longer watched."""


@dataclass(frozen=True)
class Prepared:
    """What the preparing process says of a model."""

    inputs: list[np.ndarray]
    onnx: Path
    seconds: float
    model_bytes: int
    notes: list[str]


@dataclass(frozen=True)
class Row:
    """One model's results; times in seconds, sizes in bytes."""

    model: str
    theirs: Measurement
    ours: Measurement
    prepared: Prepared
    peak: int

    @property
    def ratio(self) -> Ratio:
        """How many times ONNX Runtime's latency."""
        return ratio(self.ours, self.theirs)

    @property
    def limit(self) -> int:
        """Twice the model's bytes and 1 GB."""
        return 2 * self.prepared.model_bytes + 10**9

    def cells(self) -> tuple[str, ...]:
        """One text for each column."""
        return (
            self.model,
            f"{self.theirs.seconds * 1e3:.2f}",
            f"{self.ours.seconds * 1e3:.2f}",
            str(self.ratio),
            f"{relative_error(self.ours.outputs, self.theirs.outputs):.1e}",
            f"{self.prepared.seconds:.1f}",
            f"{self.peak / 1e6:.0f}",
            f"{self.limit / 1e6:.0f}",
            str(len(self.prepared.notes)),
        )


def measure(name: str, threads: int, rounds: int) -> Row:
    """Everything about one model."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / f"{name}.tersor"
        prepared, peak = prepare(name, artifact)
        measured = compete(
            {
                "ONNX Runtime": partial(onnx_runtime, prepared.onnx, prepared.inputs, threads),
                "tersor": partial(tersor, artifact, prepared.inputs, threads),
            },
            rounds,
        )
    return Row(name, measured["ONNX Runtime"], measured["tersor"], prepared, peak)


def prepare(name: str, artifact: Path) -> tuple[Prepared, int]:
    """Optimize a model in a process of its own, whose peak is returned too, and export it for the peer in another."""
    (seconds, notes), peak = _in_a_process(_optimize, name, artifact)
    (inputs, onnx, model_bytes), _ = _in_a_process(_export, name, artifact.parent)
    return Prepared(inputs, onnx, seconds, model_bytes, notes), peak


def _in_a_process(work: Callable[[str, Path], Job[Answer]], name: str, path: Path) -> tuple[Answer, int]:
    """What `work` answers, and the peak memory of the process until then, in bytes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_answer, args=(there, work, name, path))
    process.start()
    there.close()
    peak = PeakMemory(process.pid or 0)
    try:
        answer: Answer = here.recv()
    except EOFError:
        raise ContestantFailed(f"{name}: the process died; its traceback is above") from None
    finally:
        bytes_ = peak.stop()
    here.send("measured")
    process.join()
    return answer, bytes_


def _answer(pipe: Connection, work: Callable[[str, Path], Job[Answer]], name: str, path: Path) -> None:
    answer, afterwards = work(name, path)
    pipe.send(answer)
    pipe.recv()  # what comes now is not measured
    pipe.close()
    afterwards()


def _optimize(name: str, artifact: Path) -> Job[tuple[float, list[str]]]:
    import models
    from optimizer import optimize

    case = models.load(name)
    start = time.perf_counter()
    compiled = optimize(case.model, target="cpu", example_inputs=case.example_inputs)
    seconds = time.perf_counter() - start
    return (seconds, list(compiled.report.notes)), partial(compiled.save, artifact)


def _export(name: str, folder: Path) -> Job[tuple[list[np.ndarray], Path, int]]:
    import models
    from benchmarks.export import arrays, export

    case = models.load(name)
    return (arrays(case), export(case, folder), case.bytes), lambda: None


def heading(command: str, threads: int, rounds: int) -> str:
    """How it was measured, for RESULTS.md."""
    machine = f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    return (
        f"`{command}`, {time.strftime('%Y-%m-%d')}: {threads} threads, {rounds} rounds;\n"
        f"{machine}, {versions('apache-tvm', 'onnxruntime', 'torch')}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description="Latency beside ONNX Runtime's.")
    known = ", ".join(MODELS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=known)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant (default 15)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contestant (default 2)")
    parser.add_argument("--write", action="store_true", help=f"write the table into {RESULTS.name}")
    options = parser.parse_args(arguments)
    screen = console()
    rows = []
    for name in options.models:
        with screen.status(name):
            rows.append(measure(name, options.threads, options.rounds).cells())
        screen.print("  ".join(rows[-1]))
    screen.print(SECTION.table(rows))
    if options.write:
        SECTION.write(SECTION.markdown(heading("make bench", options.threads, options.rounds), rows))
        screen.print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
