"""What attention moves on a GPU as sequences grow, counted from its schedule; beside TVM's default schedules.

    python -m benchmarks.cuda_attention [--write]

Nothing runs. It takes about a minute.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from backends.cuda.compiler import compiler
from benchmarks.cuda_kernel_rows import KernelRow, described, kind_of
from benchmarks.cuda_schedules import kernels_of, ours, theirs
from benchmarks.results import Section, console
from optimizer.gpus import GPUS
from optimizer.text import seconds

__all__ = ["SECTION", "measure"]

SECTION = Section(
    "Attention on GPUs",
    (
        *("type", "length", "minimum", "memory", "a token", "requested", "estimate"),
        *("TVM: memory", "TVM: a token", "TVM: requested", "TVM: estimate"),
    ),
    frozenset({"type"}),
    "<!-- begin: written by benchmarks.cuda_attention -->",
    "<!-- end of benchmarks.cuda_attention -->",
)
ARCHITECTURE = "sm_80"
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
HEADS, SIZE = 12, 64
TYPES = {"float": "float32", "bfloat16": "bfloat16"}
_MEGA = 1e6


def measure(length: int, dtype: str = "float") -> KernelRow:
    """One attention of so many queries and keys.

    Args:
        length: of the sequence.
        dtype: a key of `TYPES`.
    """
    kind = f"{dtype}[1,{HEADS},{length},{SIZE}]"
    text = f'<ir_version: 11, opset_import: ["": 23]> g ({kind} q, {kind} k, {kind} v) => ({kind} y)'
    model = onnx.parser.parse_model(text + " { y = Attention(q, k, v) }")
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    gpu = GPUS[ARCHITECTURE]
    kernels = kernels_of(graph, gpu)
    (name,) = [each for each, function in kernels.functions.items() if kind_of(function) == "attention"]
    return described(name, kernels, ours(kernels, gpu)[name], theirs(kernels, [name], gpu)[name])


def cells(length: int, dtype: str) -> tuple[str, ...]:
    """A row of the table."""
    row = measure(length, dtype)
    found = []
    for whose in (row.ours, row.theirs):
        if not whose or whose["fails"] or not whose["moved"]:
            found += ["fails", "", "", ""]
            continue
        memory, requested = whose["moved"]["memory_bytes"], whose["moved"]["requested_bytes"]
        each = [f"{memory / _MEGA:.2f} MB", f"{memory / length / 1e3:.1f} kB", f"{requested / _MEGA:.0f} MB"]
        found += [*each, seconds(whose["seconds"])]
    return (TYPES[dtype], str(length), f"{row.minimum / _MEGA:.2f} MB", *found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, show, and with `--write` enter in RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="enter the table in RESULTS.md")
    options = parser.parse_args(arguments)
    rows = [cells(length, dtype) for dtype in TYPES for length in LENGTHS]
    console().print(SECTION.table(rows))
    if options.write:
        what = f"{HEADS} heads of {SIZE}, {GPUS[ARCHITECTURE].device}, compiled by {compiler().name}"
        SECTION.write(SECTION.markdown(f"{datetime.datetime.now(datetime.UTC).date()}, {what}.", rows))


if __name__ == "__main__":
    main()
