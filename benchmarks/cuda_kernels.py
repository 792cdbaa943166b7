"""What NVIDIA's compiler says of the kernels of whole models, and what these move; beside TVM's own schedules.

Nothing runs: it needs nvcc or NVRTC, and no GPU. Times are estimates of the model of the GPU.

    python -m benchmarks.cuda_kernels [--models NAME...] [--precisions NAME...] [--state FILE] [--write]

It takes about a minute a case. With `--state`, what is done is kept in that file, and not done again. With `--write`,
the models go to RESULTS.md, and the kernels, one by one, to CUDA.md; rows of what was not measured now stay there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from backends import get_backend
from backends.cuda.compiler import compiler
from benchmarks.cuda_kernel_rows import HEAVY, KernelRow, described, kind_of, worst
from benchmarks.cuda_schedules import kernels_of, ours, theirs
from benchmarks.results import Section, console
from benchmarks.suite import MODELS
from models import registry
from optimizer import optimize
from optimizer.atomic_file import atomic_write
from optimizer.errors import TersorError
from optimizer.gpus import GPUS
from optimizer.text import seconds

__all__ = ["CASES", "KERNELS", "SECTION", "Row", "measure"]

SECTION = Section(
    "CUDA kernels",
    (
        *("model", "precision", "for", "kernels", "tensor cores", "registers", "shared", "spills", "memory"),
        *("estimate", "TVM: spills", "TVM: memory", "TVM: estimate", "a run", "optimize()"),
    ),
    frozenset({"model", "precision", "for"}),
    "<!-- begin: written by benchmarks.cuda_kernels -->",
    "<!-- end of benchmarks.cuda_kernels -->",
)
KERNELS = Section(
    "CUDA kernels, one by one",
    (
        *("kernel", "sizes", "type", "for", "used by", "tensor cores", "registers", "shared", "spills"),
        *("memory", "requested", "estimate", "TVM: registers", "TVM: shared", "TVM: spills"),
        *("TVM: memory", "TVM: requested", "TVM: estimate"),
    ),
    frozenset({"kernel", "sizes", "type", "for", "used by", "tensor cores"}),
    "<!-- begin: written by benchmarks.cuda_kernels -->",
    "<!-- end of benchmarks.cuda_kernels -->",
)
KERNELS_FILE = Path(__file__).with_name("CUDA.md")
ARCHITECTURES = ("sm_80", "sm_90")
_LANGUAGE = ("bert-base", "bert-base-512", "minilm", "minilm-32", "gpt2", "vit-b16", "whisper-base-encoder")
"""Models that have matrices for weights of 4 bits."""
_PRODUCTS = ("matmul", "conv2d", "four_bits")
_KIB = 1024
_KEY = 4
"""Columns that say which kernel a row is of."""


def _precisions() -> tuple[str, ...]:
    """float16 where the backend has it: tensor cores take both types of 16 bits at the same speed."""
    half = "float16" if "float16" in get_backend("cuda").precisions else "bfloat16"
    return "float32", half, "int8", "int4"


CASES: tuple[tuple[str, str], ...] = tuple(
    (name, precision) for name in MODELS for precision in _precisions() if precision != "int4" or name in _LANGUAGE
)
"""Models of the suite, and the precision that they are compiled in."""


@dataclass(frozen=True)
class Row:
    """A model's kernels for one architecture.

    Attributes:
        model: Its name.
        precision: As `optimize` takes it.
        architecture: As `sm_80`.
        refused: Why there is no such model; the rest says nothing then.
        kernels: All of them.
        estimate: Seconds of a run; `None` where sizes are symbolic.
        optimize_seconds: What `optimize()` took of the processor; `None` where the graph was there from another
            architecture.
    """

    model: str
    precision: str
    architecture: str
    refused: str
    kernels: list[KernelRow]
    estimate: float | None
    optimize_seconds: float | None

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        first = (self.model, self.precision, self.architecture)
        if self.refused:
            return (*first, self.refused, *[""] * (len(SECTION.columns) - 4))
        heavy = [row for row in self.kernels if row.kind in HEAVY]
        others = [row.theirs for row in heavy if row.theirs is not None]
        fails = [each for each in others if each["fails"]]
        spills = sum(each["spilled_bytes"] for each in others)
        return (
            *first,
            str(len(self.kernels)),
            _on_tensor_cores([row for row in heavy if row.kind != "depthwise"]),
            str(max(row.ours["registers"] for row in self.kernels)),
            _kib(max(row.ours["shared_bytes"] for row in self.kernels)),
            f"{sum(row.ours['spilled_bytes'] for row in self.kernels)} B",
            _ratio(worst(self.kernels, _PRODUCTS, "ours")),
            _seconds(_total(heavy, "ours")),
            f"{len(fails)} fail" if fails else f"{spills} B",
            _ratio(worst(self.kernels, _PRODUCTS, "theirs")),
            "" if fails else _seconds(_total(heavy, "theirs")),
            _seconds(self.estimate),
            _seconds(self.optimize_seconds),
        )


def _on_tensor_cores(rows: Sequence[KernelRow]) -> str:
    """Of the kernels of 16 bits or bytes, and how many others there are; of all, where there are no such kernels."""
    full = [row for row in rows if row.dtype in ("float32", "int4")]
    low = [row for row in rows if row not in full] or rows
    others = f", {len(full)} float32" if full and low is not rows else ""
    return f"{sum(bool(row.ours['tensor_cores']) for row in low)} of {len(low)}{others}"


def _total(rows: Sequence[KernelRow], whose: str) -> float | None:
    """Of all calls; `None` where one is not known."""
    found = [(row.calls, (row.ours if whose == "ours" else row.theirs or {}).get("seconds")) for row in rows]
    return None if any(each is None for _, each in found) else sum(calls * each for calls, each in found if each)


def _kib(nbytes: int) -> str:
    return f"{nbytes / _KIB:.1f} KiB"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return "" if value is None else seconds(value)


def _processor_seconds() -> float:
    """Of this process, of those that it has waited for (nvcc), and of those that it has (the compile process)."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    running = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    ticks = sum(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]) for pid in running)
    return sum(use.ru_utime for use in uses) + ticks / os.sysconf("SC_CLK_TCK")


def measure(name: str, precision: str) -> list[Row]:
    """Compile a model of the registry for each architecture."""
    case = registry.load(name)
    begin = _processor_seconds()
    try:
        compiled = optimize(
            case.model,
            f"cuda:{ARCHITECTURES[0]}",
            example_inputs=case.example_inputs,
            precision=precision,
            calibration=[case.example_inputs] if precision == "int8" else None,
            verify="off",
            fallback="error",
            cache=False,
            progress=False,
        )
    except TersorError as error:
        return [Row(name, precision, each, f"refused: {str(error)[:120]}", [], None, None) for each in ARCHITECTURES]
    taken: float | None = _processor_seconds() - begin
    rows = []
    for architecture in ARCHITECTURES:
        gpu = GPUS[architecture]
        kernels = kernels_of(compiled.graph, gpu, case.example_inputs)
        heavy = [each for each, function in kernels.functions.items() if kind_of(function)]
        own, others = ours(kernels, gpu), theirs(kernels, heavy, gpu)
        estimate = sum(kernels.calls[each] * found.seconds for each, found in kernels.estimates.items())
        found = [described(each, kernels, own[each], others.get(each)) for each in kernels.functions]
        rows.append(Row(name, precision, architecture, "", found, None if kernels.sizes else estimate, taken))
        taken = None
    return rows


def kernel_cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The kernels of all models, each once; of those that differ in their tails only, the one that moves most."""
    found: dict[tuple[str, ...], list[tuple[str, KernelRow]]] = {}
    for row in rows:
        for kernel in row.kernels:
            if kernel.kind in HEAVY:
                found.setdefault((*kernel.key, row.architecture), []).append((row.model, kernel))
    return in_order(_kernel_cells(key[3], users) for key, users in found.items())


def in_order(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows of kernels by kind, type, sizes and architecture."""
    return sorted(rows, key=lambda row: (HEAVY.index(row[0]), row[2], _numbers(row[1]), row[3]))


def with_others(new: Sequence[tuple[str, ...]], held: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Rows of cases that were measured now, and those of other cases, in the order of `CASES`."""
    done = {row[:3] for row in new}
    rows = [*new, *(tuple(row) for row in held if tuple(row[:3]) not in done and tuple(row[:2]) in CASES)]
    return sorted(rows, key=lambda row: (CASES.index((row[0], row[1])), row[2]))


def with_other_kernels(new: Sequence[tuple[str, ...]], held: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Rows of kernels that were compiled now, with all models that use them, and those of other kernels."""
    kept = {tuple(row[:_KEY]): tuple(row) for row in held}
    rows = []
    for row in new:
        other = kept.pop(row[:_KEY], row)
        users = sorted({*row[_KEY].split(", "), *other[_KEY].split(", ")})
        rows.append((*row[:_KEY], ", ".join(users), *row[_KEY + 1 :]))
    return in_order([*rows, *kept.values()])


def _numbers(shape: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in shape.replace("/", " / ").split()]


def _kernel_cells(architecture: str, users: Sequence[tuple[str, KernelRow]]) -> tuple[str, ...]:
    kernel = max((row for _, row in users), key=lambda row: row.ratio("memory_bytes", row.ours) or 0.0)
    names = sorted({name for name, _ in users})
    return (
        kernel.kind,
        kernel.shape,
        kernel.dtype,
        architecture,
        ", ".join(names),
        "yes" if kernel.ours["tensor_cores"] else "",
        *_schedule_cells(kernel, kernel.ours),
        *_schedule_cells(kernel, kernel.theirs or {"fails": "not compiled"}),
    )


def _schedule_cells(kernel: KernelRow, whose: dict[str, Any]) -> tuple[str, ...]:
    if whose["fails"]:
        return ("fails", *[""] * 5)
    return (
        str(whose["registers"]),
        _kib(whose["shared_bytes"]),
        f"{whose['spilled_bytes']} B",
        _ratio(kernel.ratio("memory_bytes", whose)),
        _ratio(kernel.ratio("requested_bytes", whose)),
        _seconds(whose["seconds"]),
    )


def _from_plain(data: dict[str, Any]) -> Row:
    return Row(**{**data, "kernels": [KernelRow(**each) for each in data["kernels"]]})


class _State:
    """What was measured, in a file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        held = path is not None and path.exists()
        self._rows: dict[str, list[dict[str, Any]]] = json.loads(path.read_text()) if held and path else {}

    def rows(self, name: str, precision: str) -> list[Row]:
        """From the file, or measured now."""
        key = f"{name} {precision}"
        if key not in self._rows:
            print(f"{key}...", file=sys.stderr, flush=True)
            self._rows[key] = [asdict(row) for row in measure(name, precision)]
            if self._path is not None:
                with atomic_write(self._path) as file:
                    file.write(json.dumps(self._rows).encode())
        return [_from_plain(data) for data in self._rows[key]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, show, and with `--write` enter in RESULTS.md and CUDA.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="*", default=MODELS, help="only these")
    parser.add_argument("--precisions", nargs="*", default=_precisions(), help="only these")
    parser.add_argument("--state", type=Path, help="a file that keeps what is done")
    parser.add_argument("--write", action="store_true", help="enter the tables in RESULTS.md and CUDA.md")
    options = parser.parse_args(arguments)
    state = _State(options.state)
    wanted = [case for case in CASES if case[0] in options.models and case[1] in options.precisions]
    rows = [row for case in wanted for row in state.rows(*case)]
    cells = [row.cells() for row in rows]
    console().print(SECTION.table(cells))
    if options.write:
        heading = f"{datetime.datetime.now(datetime.UTC).date()}, compiled by {compiler().name}."
        kernels = kernel_cells(rows)
        if wanted != list(CASES):
            kernels = with_other_kernels(kernels, KERNELS.rows(KERNELS_FILE))
        SECTION.write(SECTION.markdown(heading, with_others(cells, SECTION.rows())))
        KERNELS.write(KERNELS.markdown(heading, kernels), KERNELS_FILE)


if __name__ == "__main__":
    main()
