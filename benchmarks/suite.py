"""Fifteen models beside ONNX Runtime, OpenVINO and torch.compile, and what `optimize()` takes for each.

    python -m benchmarks.suite                     # all, printed
    python -m benchmarks.suite --models minilm     # one
    python -m benchmarks.suite --write             # all, into benchmarks/RESULTS.md and the two drawings
    python -m benchmarks.suite --precision bfloat16

Latency is measured by `optimizer.timing`: all contestants in processes of their own, in turn. `optimize()` runs in
a fresh process, with the model already loaded. Nothing else should run on the machine meanwhile. In bfloat16, ONNX
Runtime still computes in float32: it is the reference for the results, and its time is shown but not compared.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks import charts, contestants, machine
from benchmarks.contestants import OPENVINO, ORT, TERSOR, TORCH
from benchmarks.contests import CONTESTS, FLOAT32, Contest
from benchmarks.machine import Machine
from benchmarks.preparation import Compilation, compile_model, export_model
from benchmarks.results import RESULTS, console, versions
from benchmarks.rows import COMPILING, LARGEST_ERROR, Row, means, slower
from optimizer.atomic_file import atomic_write
from optimizer.timing import Build, ContestantFailed, Measurement, relative_error

MODELS = (
    "bert-base", "bert-base-512", "minilm", "minilm-32", "vit-b16", "resnet-50", "resnet-50-b8", "mobilenet-v2",
    "efficientnet-lite0", "gpt2", "whisper-base-encoder", "ppocr-det", "ppocr-rec", "densenet-121", "inception-v2",
)  # fmt: skip
ROUNDS, THREADS = 15, 2
ROOFLINE = "roofline.svg"
"""A drawing, beside RESULTS.md."""


def measure(name: str, threads: int, rounds: int, contest: Contest = FLOAT32) -> Row:
    """Everything about one model.

    Raises:
        ContestantFailed: The model cannot even be exported.
    """
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / f"{name}.tersor"
        workload = export_model(name, artifact.parent)
        builds: dict[str, Build] = {
            ORT: partial(contestants.onnx_runtime, workload.onnx, workload.inputs, threads),
            OPENVINO: partial(contestants.openvino, workload.onnx, workload.inputs, threads, contest.precision),
            TORCH: partial(contestants.torch_compile, name, threads, contest.precision),
            TERSOR: partial(contestants.tersor, artifact, workload.inputs, threads),
        }
        absent = {each: why for each in builds if (why := contestants.why_absent(each, workload.is_module)) is not None}
        compilation: Compilation | None = None
        try:
            compilation = compile_model(name, artifact, contest.precision)
        except ContestantFailed:
            absent[TERSOR] = "optimize() failed"
        present = {each: build for each, build in builds.items() if each not in absent}
        measured, failed = contestants.compete_without_failures(present, rounds)
    row = Row(name, workload, compilation, measured, {**absent, **failed}, contest)
    wrong = differing(measured, row.bound)
    right = {each: measurement for each, measurement in measured.items() if each not in wrong}
    return replace(row, measured=right, absent={**row.absent, **wrong})


def differing(measured: Mapping[str, Measurement], bound: float = LARGEST_ERROR) -> dict[str, str]:
    """By name the contestants that computed something else than ONNX Runtime, and by how much."""
    if ORT not in measured:
        return {}
    errors = {name: relative_error(each.outputs, measured[ORT].outputs) for name, each in measured.items()}
    return {name: f"differs by {error:.0e}" for name, error in errors.items() if not error <= bound}


def heading(command: str, threads: int, rounds: int) -> str:
    """How it was measured, for RESULTS.md."""
    system = f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    named = ["apache-tvm", "onnxruntime", "torch"]
    installed = {distribution.name for distribution in importlib.metadata.distributions(name="openvino")}
    return (
        f"`{command}`, {time.strftime('%Y-%m-%d')}: {threads} threads, {rounds} rounds;\n"
        f"{system}, {versions(*named, *sorted(installed))}."
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(how: str, rows: Sequence[Row], roofs: Machine | None, path: Path = RESULTS) -> None:
    """The tables of a contest into RESULTS.md, and the drawings beside it.

    Args:
        how: Stands above the tables.
        rows: One for each model.
        roofs: What the machine can do in float32; `None` in another precision, where the speed alone is written.
        path: The file.
    """
    contest = rows[0].contest
    drawings = {contest.chart: charts.speed(rows)} | ({ROOFLINE: charts.roofline(rows, roofs)} if roofs else {})
    for name, drawing in drawings.items():
        with atomic_write(path.with_name(name)) as file:
            file.write(drawing.encode())
    behind = slower(rows) or ["No model is slower than a peer."]
    below = "\n".join(
        (
            means(rows),
            "",
            f"![Speed over each peer]({contest.chart})",
            "",
            *((f"![Roofline]({ROOFLINE})", "", roofs.sentence(), "") if roofs else ()),
            "Where a peer is faster:",
            "",
            *(f"* {sentence}" for sentence in behind),
        )
    )
    contest.speed.write(f"{contest.speed.markdown(how, [row.speed_cells() for row in rows])}\n\n{below}", path)
    if roofs:
        COMPILING.write(COMPILING.markdown(how, [row.compiling_cells() for row in rows]), path)


def measure_all(names: Sequence[str], threads: int, rounds: int, screen: Console, contest: Contest) -> list[Row]:
    """The rows of the models, each shown as it is there."""
    rows = []
    for name in names:
        with screen.status(name):
            rows.append(measure(name, threads, rounds, contest))
        screen.print("  ".join(rows[-1].speed_cells()), markup=False)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description="Latency beside that of peers.")
    known = ", ".join(MODELS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=known)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each contestant (default {ROUNDS})")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of each contestant (default {THREADS})")
    parser.add_argument(
        "--precision", choices=CONTESTS, default=FLOAT32.precision, help="what to compute in (default %(default)s)"
    )
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} and the drawings")
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(given)
    screen = console()
    contest = CONTESTS[options.precision]
    rows = measure_all(options.models, options.threads, options.rounds, screen, contest)
    roofs = None
    if contest is FLOAT32:
        with screen.status("the machine's roofs"):
            roofs = machine.measure(options.threads)
    for section, cells in (
        (contest.speed, [row.speed_cells() for row in rows]),
        (COMPILING, [row.compiling_cells() for row in rows]),
    ):
        screen.print(section.table(cells))
    for line in (means(rows), *slower(rows), *((roofs.sentence(),) if roofs else ())):
        screen.print(line, markup=False)
    if options.write:
        all_of_it = given in (["--write"], ["--precision", options.precision, "--write"])
        command = "make bench" if all_of_it else f"python -m benchmarks.suite {' '.join(given)}"
        write(heading(command, options.threads, options.rounds), rows, roofs)
        screen.print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
