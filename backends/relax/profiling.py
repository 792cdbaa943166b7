"""Times of kernels, and beside each what the tile model says of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from backends.relax.forecast import Conditions, forecast, sizes_of_call
from backends.relax.plan import Plan
from backends.relax.probing import core_peak
from backends.relax.runtime import Hook
from optimizer.cpus import Cpu
from optimizer.executable import KernelTime
from optimizer.forecast import Forecast
from optimizer.peaks import Peaks, read_bandwidth

__all__ = ["conditions", "kernel_times", "times_of_run"]

_NOT_KERNELS = "vm.builtin"

Shapes = list[tuple[int, ...]]


class _Recorder:
    """A hook that notes how long each call takes, and the shapes of its arguments."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.shapes: dict[str, list[Shapes]] = defaultdict(list)
        self._started: list[float] = []

    def __call__(self, _function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> int:
        if before:
            if not name.startswith(_NOT_KERNELS):
                shapes = (getattr(argument, "shape", None) for argument in arguments)
                self.shapes[name].append([tuple(shape) for shape in shapes if shape is not None])
            self._started.append(time.perf_counter())
        else:
            self.times[name].append(time.perf_counter() - self._started.pop())
        return 0


def conditions(plan: Plan, library: Path | None, num_threads: int) -> Conditions | None:
    """The machine and the run, measured; `None` where nothing was compiled."""
    if library is None or not plan.cpu:
        return None
    cpu = Cpu(**plan.cpu)
    peaks = Peaks(core_peak(library, cpu), read_bandwidth(num_threads))
    return Conditions(cpu, peaks, num_threads, plan.weight_bytes)


def kernel_times(run: Callable[[Hook], object], plan: Plan, here: Conditions | None, repeats: int) -> list[KernelTime]:
    """One row for each kernel of a run, the slowest first.

    Args:
        run: Runs once, with a hook around each kernel.
        plan: What runs.
        here: The machine, for predictions; without it there are none.
        repeats: How many runs are timed; a kernel's time is the median of them.
    """
    runs = [_Recorder() for _ in range(repeats)]
    for recorder in runs:
        run(recorder)
    names = [name for name in runs[0].times if not name.startswith(_NOT_KERNELS)]
    rows = [
        KernelTime(
            name,
            tuple(plan.kernels.get(name, ())),
            median(sum(r.times.get(name, [0.0])) for r in runs),
            len(runs[0].times[name]),
            _forecast(name, runs[0].shapes[name], plan, here),
        )
        for name in names
    ]
    return sorted(rows, key=lambda row: -row.seconds)


def times_of_run(run: Callable[[Hook], object], plan: Plan) -> list[tuple[tuple[str, ...], float]]:
    """The nodes of each kernel and its seconds in one run, all calls of it together."""
    recorder = _Recorder()
    run(recorder)
    found = ((tuple(plan.kernels.get(name, ())), sum(times)) for name, times in recorder.times.items())
    return [(nodes, seconds) for nodes, seconds in found if nodes]


def _forecast(name: str, calls: list[Shapes], plan: Plan, here: Conditions | None) -> Forecast | None:
    """Of all calls of a kernel together; each may have sizes of its own."""
    work = plan.work.get(name)
    if work is None or here is None:
        return None
    each = [forecast(work, sizes_of_call(work, shapes), here) for shapes in calls]
    longest = max(each, key=lambda one: one.limit)
    return Forecast(
        sum(one.seconds for one in each),
        sum(one.flops for one in each),
        sum(one.bytes for one in each),
        longest.bound,
        sum(one.limit for one in each),
    )
