"""Fuzz `optimize` with mutated model files and print the counts: `python -m tests.fuzz --count 5000`.

The exit code is 1 when a mutant crashed the process, hung, or got an exception that is not ours.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.fuzz.runner import GOOD, Case, run

CPU_SHARE = 10  # With --target mixed, one mutant in so many goes through the compiler.


def targets(kind: str, seed: int) -> str:
    """The target of a mutant."""
    if kind == "mixed":
        return "cpu" if seed % CPU_SHARE == 0 else "onnx"
    return kind


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--count", type=int, default=5000, help="how many mutants (default 5000)")
    parser.add_argument("--start", type=int, default=0, help="the first mutant's seed (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--target", choices=("onnx", "cpu", "mixed"), default="mixed")
    parser.add_argument("--show", default="\n", metavar="ERROR", help="also print refusals whose error begins so")
    options = parser.parse_args(arguments)

    start = time.perf_counter()
    cases = [Case(seed, targets(options.target, seed)) for seed in range(options.start, options.start + options.count)]
    kinds: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    slowest = 0.0
    for number, outcome in enumerate(run(cases, options.jobs), start=1):
        kinds[outcome.kind] += 1
        if outcome.kind == "refused":
            errors[outcome.detail.partition(":")[0]] += 1
        slowest = max(slowest, outcome.seconds)
        if outcome.kind not in GOOD or outcome.detail.startswith(options.show):
            print(outcome, flush=True)
        if number % 500 == 0:
            print(f"{number} of {len(cases)}: {dict(kinds)}", flush=True)
    print(f"{len(cases)} mutants in {time.perf_counter() - start:.0f} s, the slowest {slowest:.1f} s")
    for kind in ("accepted", "refused", "foreign", "crash", "hang"):
        print(f"  {kind:9} {kinds[kind]}")
    print("refused with " + ", ".join(f"{name} {count}" for name, count in errors.most_common()))
    return int(any(kind not in GOOD for kind in kinds))


if __name__ == "__main__":
    sys.exit(main())
