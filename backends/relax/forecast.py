"""From a kernel's work to seconds: the arithmetic or the traffic at one level, whichever takes longest, and a start.

docs/tile-model.md explains the formula. Nothing here needs TVM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.relax.plan import Work
from backends.relax.size_value import Formula, evaluate
from optimizer.cpus import Cpu
from optimizer.forecast import Forecast
from optimizer.peaks import Peaks

__all__ = ["Conditions", "forecast", "sizes_of_call"]

CALL_SECONDS = 1.0e-6
"""A call through the virtual machine."""
PARALLEL_SECONDS = 2.5e-6
"""To hand tasks to the other threads, and to wait for the last."""
_L2_SHARE = 0.7
_L3_SHARE = 0.8
"""How much of a cache still holds what the kernel before wrote."""


@dataclass(frozen=True)
class Conditions:
    """What a run meets.

    Attributes:
        cpu: The processor that the code is for.
        peaks: One core's floating-point operations a second, and the bandwidth of all threads together.
        threads: That share the tasks.
        weight_bytes: Of all packed weights of the model, which a run reads once.
    """

    cpu: Cpu
    peaks: Peaks
    threads: int
    weight_bytes: int

    @property
    def clock(self) -> float:
        """Cycles a second."""
        return self.peaks.flops / self.cpu.flops_a_cycle

    def home(self, size: float) -> str:
        """Where so many bytes still are that were written or read a moment ago."""
        if size <= _L2_SHARE * self.cpu.l2_bytes * self.threads:
            return "L2"
        return "L3" if size <= _L3_SHARE * self.cpu.l3_bytes else "memory"

    def rate(self, place: str, threads: int) -> float:
        """Bytes a second that so many threads get from there."""
        one = {"L2": self.cpu.l2_bytes_a_cycle, "L3": self.cpu.l3_bytes_a_cycle}.get(place)
        if one is not None:
            return one * self.clock * threads
        return min(self.peaks.bandwidth, self.cpu.memory_bytes_a_cycle * self.clock * threads)


def sizes_of_call(work: Work, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """The symbolic sizes that the shapes of a call's arguments show."""
    sizes: dict[str, int] = {}
    for declared, actual in zip(work.arguments, shapes, strict=False):
        for name, size in zip(declared, actual, strict=False):
            if isinstance(name, str):
                sizes.setdefault(name, size)
    return sizes


def forecast(work: Work, sizes: Mapping[str, int], here: Conditions) -> Forecast:
    """What one call takes.

    Args:
        work: Of the kernel.
        sizes: Of its arguments, where they are symbolic.
        here: The machine and the run.
    """

    def value(amount: Formula) -> int:
        return evaluate(amount, sizes)

    tasks = max(1, value(work.tasks))
    threads = min(here.threads, tasks)
    uneven = -(-tasks // threads) * threads / tasks
    weights, data = value(work.weights), value(work.data)
    traffic = {"L2": float(value(work.near)), "L3": float(value(work.far)), "memory": 0.0}
    weights_home = "memory" if here.home(here.weight_bytes) == "memory" else "L3"
    traffic[weights_home] += weights
    data_home = here.home(data)
    traffic[data_home] += data
    seconds = {place: size / here.rate(place, threads) * uneven for place, size in traffic.items()}
    seconds["arithmetic"] = value(work.cycles) / here.clock / threads * uneven
    start = CALL_SECONDS + (PARALLEL_SECONDS if threads > 1 else 0.0)
    roofs = {
        "arithmetic": value(work.flops) / (here.peaks.flops * work.width * here.threads),
        data_home: data / here.rate(data_home, here.threads),
    }
    roofs[weights_home] = roofs.get(weights_home, 0.0) + weights / here.rate(weights_home, here.threads)
    bound = max(roofs, key=lambda place: roofs[place])
    return Forecast(max(seconds.values()) + start, value(work.flops), weights + data, bound, roofs[bound])
