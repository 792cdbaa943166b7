"""Run ONNX's node tests through `optimize`: `python -m tests.conformance`.

Prints how many passed, and compares the failures with those that `expected_failures.json` lists. The exit code is 1
where they differ, either way; `--update` writes the list instead.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections import Counter
from collections.abc import Sequence

from tests.conformance import expected
from tests.conformance.cases import FALLBACKS, Fallback, Outcome, cases
from tests.conformance.runner import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="ONNX's node tests")
    parser.add_argument("pattern", nargs="?", default="*", help="only tests whose name fits, such as 'test_resize*'")
    parser.add_argument("--fallback", choices=FALLBACKS, help="only with this fallback (default: with each)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--update", action="store_true", help="write the failures to expected_failures.json")
    options = parser.parse_args(arguments)
    names = fnmatch.filter(cases(), options.pattern)
    failures = 0
    for fallback in [options.fallback] if options.fallback else FALLBACKS:
        outcomes = _run(names, fallback, options.jobs)
        if options.update:
            expected.update(fallback, outcomes)
        else:
            failures += _compared(fallback, outcomes)
    return int(failures > 0)


def _run(names: Sequence[str], fallback: Fallback, jobs: int) -> list[Outcome]:
    start = time.perf_counter()
    outcomes = []
    for outcome in run(names, fallback, jobs=jobs):
        outcomes.append(outcome)
        if len(outcomes) % 200 == 0:
            print(f"  {len(outcomes)} of {len(names)}", flush=True)
    counts = Counter(outcome.status for outcome in outcomes)
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    print(f"fallback={fallback!r}: {told}, of {len(outcomes)} in {time.perf_counter() - start:.0f} s", flush=True)
    return outcomes


def _compared(fallback: Fallback, outcomes: Sequence[Outcome]) -> int:
    """Print what differs from the list of expected failures; how many do."""
    surprises = [text for outcome in outcomes if (text := expected.surprise(outcome, fallback))]
    for text in surprises:
        print(f"  {text}")
    return len(surprises)


if __name__ == "__main__":
    sys.exit(main())
