"""ONNX's node tests on a device, counted: `python -m tests.gpu.node_tests [--target opencl] [--write]`.

Those that pass on the CPU without ONNX Runtime. With `--write` the counts go to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.results import Section, console
from tests.conformance import expected
from tests.conformance.cases import Outcome, cases
from tests.conformance.runner import run
from tests.gpu.pocl import use

__all__ = ["SECTION", "cells", "passing"]

SECTION = Section(
    "Node tests on devices",
    ("target", "tests", "passed", "refused", "wrong", "share", "time"),
    frozenset({"target"}),
    "<!-- begin: written by tests.gpu.node_tests -->",
    "<!-- end of tests.gpu.node_tests -->",
)
TARGETS = ("opencl", "cpu")


def passing() -> list[str]:
    """Those that pass on the CPU with `fallback="error"`."""
    known = expected.failures("error")
    return [name for name in cases() if name not in known]


def cells(target: str, outcomes: Sequence[Outcome], seconds: float) -> tuple[str, ...]:
    """A row of the table."""
    counts = Counter(outcome.status for outcome in outcomes)
    wrong = len(outcomes) - counts["passed"] - counts["refused"]
    share = counts["passed"] / len(outcomes)
    numbers = (len(outcomes), counts["passed"], counts["refused"], wrong)
    return (target, *(f"{n:,}" for n in numbers), f"{100 * share:.1f}%", f"{seconds:.0f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; the exit code is 1 if one of them is neither passed nor refused."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.node_tests", description="ONNX's node tests on a device")
    parser.add_argument("--target", choices=TARGETS, default=TARGETS[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--write", action="store_true", help="enter the counts in RESULTS.md")
    options = parser.parse_args(arguments)
    use(Path(sys.prefix) / "pocl")
    begin = time.perf_counter()
    outcomes = list(run(passing(), "error", target=options.target, jobs=options.jobs))
    row = cells(options.target, outcomes, time.perf_counter() - begin)
    console().print(SECTION.table([row]))
    for outcome in outcomes:
        if outcome.status != "passed":
            print(f"  {outcome.status}: {outcome}")
    if options.write:
        SECTION.write(SECTION.markdown(f"{datetime.datetime.now(datetime.UTC).date()}, by PoCL.", [row]))
    return int(any(outcome.status not in ("passed", "refused") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
