"""What NVIDIA's compiler says of the kernels of whole models: registers, shared memory, spills, tensor cores.

Nothing runs: it needs nvcc or NVRTC, and no GPU. Times are estimates of the model of the GPU.

    python -m benchmarks.cuda_kernels [--models NAME...] [--write]
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from backends import get_backend
from backends.cuda.compiler import compiler
from benchmarks.results import Section, console
from models import registry
from optimizer import optimize
from optimizer.target import Target
from optimizer.text import seconds

__all__ = ["CASES", "SECTION", "Row", "measure"]

SECTION = Section(
    "CUDA kernels",
    ("model", "precision", "for", "kernels", "mma", "registers", "shared", "spills", "estimate", "optimize()"),
    frozenset({"model", "precision", "for"}),
    "<!-- begin: written by benchmarks.cuda_kernels -->",
    "<!-- end of benchmarks.cuda_kernels -->",
)
ARCHITECTURES = ("sm_80", "sm_90")
CASES: tuple[tuple[str, str], ...] = (
    *((name, precision) for name in ("minilm", "mobilenet-v2") for precision in ("float32", "bfloat16", "int8")),
    ("minilm", "int4"),
    ("resnet-50", "float32"),
    ("resnet-50", "bfloat16"),
    *((name, "float32") for name in ("gpt2", "bert-base", "vit-b16", "efficientnet-lite0", "whisper-base-encoder")),
    *((name, "float32") for name in ("ppocr-det", "ppocr-rec", "densenet-121", "inception-v2")),
)
"""Models of the suite, and the precision that they are compiled in."""
_KIB = 1024


@dataclass(frozen=True)
class Row:
    """A model's kernels for one architecture.

    Attributes:
        model: Its name.
        precision: As `optimize` takes it.
        architecture: As `sm_80`.
        kernels: How many device functions there are.
        products: How many of them have tensor-core instructions.
        registers: The most that a thread takes.
        shared_bytes: The most that a block takes.
        spilled_bytes: Of all kernels.
        estimate: Seconds of a run; `None` where sizes are symbolic.
        optimize_seconds: What `optimize()` took; `None` where the graph was there from another architecture.
    """

    model: str
    precision: str
    architecture: str
    kernels: int
    products: int
    registers: int
    shared_bytes: int
    spilled_bytes: int
    estimate: float | None
    optimize_seconds: float | None

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        return (
            self.model,
            self.precision,
            self.architecture,
            str(self.kernels),
            str(self.products),
            str(self.registers),
            f"{self.shared_bytes / _KIB:.1f} KiB",
            f"{self.spilled_bytes} B",
            "" if self.estimate is None else seconds(self.estimate),
            "" if self.optimize_seconds is None else seconds(self.optimize_seconds),
        )


def measure(name: str, precision: str) -> Iterator[Row]:
    """Compile a model of the registry for each architecture."""
    case = registry.load(name)
    calibration = [case.example_inputs] if precision == "int8" else None
    begin = time.perf_counter()
    compiled = optimize(
        case.model,
        f"cuda:{ARCHITECTURES[0]}",
        example_inputs=case.example_inputs,
        precision=precision,
        calibration=calibration,
        verify="off",
        fallback="error",
        cache=False,
        progress=False,
    )
    taken: float | None = time.perf_counter() - begin
    for architecture in ARCHITECTURES:
        executable = get_backend("cuda").compile(compiled.graph, Target.parse(f"cuda:{architecture}"), fallback="error")
        parts: dict[str, Any] = dict(executable.parts())
        manifest: dict[str, Any] = dict(executable.manifest())
        resources = list(manifest["resources"].values())
        yield Row(
            name,
            precision,
            architecture,
            len(resources),
            sum(b"mma.sync" in kernel for kernel in parts["kernels.ptx"].split(b".entry")[1:]),
            max(each["registers"] for each in resources),
            max(each["shared_bytes"] for each in resources),
            sum(each["spilled_bytes"] for each in resources),
            manifest["program"]["estimated_seconds"],
            taken,
        )
        taken = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, show, and with `--write` enter in RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="*", default=sorted({name for name, _ in CASES}), help="only these")
    parser.add_argument("--write", action="store_true", help="enter the table in RESULTS.md")
    options = parser.parse_args(arguments)
    cells = [row.cells() for case in CASES if case[0] in options.models for row in measure(*case)]
    console().print(SECTION.table(cells))
    if options.write:
        today = datetime.datetime.now(datetime.UTC).date()
        SECTION.write(SECTION.markdown(f"{today}, compiled by {compiler().name}.", cells))


if __name__ == "__main__":
    main()
