"""Generated graphs through the default pipeline and the CPU backend: `python -m tests.generated --count 20000`.

Each batch runs in a process of its own, so that a crash or a hang is counted and not shared. The exit code is 1 when
there was a mismatch, an error, a crash or a hang.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass

from rich.console import Console
from rich.progress import track

BATCH = 250
SECONDS_PER_GRAPH = 20.0
"""A batch that takes longer than so much for each of its graphs hangs."""


@dataclass(frozen=True)
class Outcome:
    """What became of a batch.

    Attributes:
        kind: `"good"`, `"failure"`, `"crash"` or `"hang"`.
        total: Graphs that were tried.
        compared: Those that there was a reference for.
        detail: What went wrong, with the smallest graph that shows it.
    """

    kind: str
    total: int
    compared: int
    detail: str


def run_batch(first: int, count: int) -> Outcome:
    """Run one batch in a process of its own."""
    command = [sys.executable, "-m", "tests.generated.batch", str(first), str(count)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=count * SECONDS_PER_GRAPH)
    except subprocess.TimeoutExpired:
        return Outcome("hang", count, 0, f"batch {first} did not end")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"seed"')]
    if not lines:
        return Outcome("crash", count, 0, f"batch {first} ended with {done.returncode}: {done.stderr[-2000:]}")
    found = json.loads(lines[-1])
    kind = "failure" if found["failure"] else "good"
    return Outcome(kind, found["total"], found["compared"], f"batch {first}: {found['failure']}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.generated", description="Generated graphs through optimize()."
    )
    parser.add_argument("--count", type=int, default=20_000, help="how many graphs (default 20000)")
    parser.add_argument("--start", type=int, default=0, help="seed of the first batch (default 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    start = time.perf_counter()
    kinds: Counter[str] = Counter()
    total = compared = 0
    batches = range(options.start, options.start + -(-options.count // BATCH))
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(run_batch, first, min(BATCH, options.count)) for first in batches]
        done = concurrent.futures.as_completed(futures)
        for future in track(done, "generated graphs", len(futures), console=console):
            outcome = future.result()
            kinds[outcome.kind] += 1
            total += outcome.total
            compared += outcome.compared
            if outcome.kind != "good":
                print(f"{outcome.kind}: {outcome.detail}", flush=True)
    print(f"{total} graphs in {time.perf_counter() - start:.0f} s, {compared} compared; batches: {dict(kinds)}")
    return int(any(kind != "good" for kind in kinds))


if __name__ == "__main__":
    sys.exit(main())
