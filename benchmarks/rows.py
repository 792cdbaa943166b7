"""What is known of a model once it has been timed, and the two tables that say it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.contestants import ORT, TERSOR
from benchmarks.contests import FLOAT32, Contest
from benchmarks.preparation import Compilation, Workload
from benchmarks.results import Section
from optimizer.timing import Measurement, Ratio, ratio, relative_error

__all__ = ["COMPILING", "LARGEST_ERROR", "Row", "geometric_mean", "means", "slower"]

COMPILING = Section(
    "Latency beside ONNX Runtime's, and what optimize() takes",
    (
        "model",
        "ONNX Runtime ms",
        "tersor ms",
        "ratio (quartiles)",
        "relative error",
        "optimize() s",
        "peak MB",
        "limit MB",
        "fallback",
    ),
    texts=frozenset({"model"}),
    begin="<!-- begin: written by make bench -->",
    end="<!-- end -->",
)
LARGEST_ERROR = 1e-2
"""Beyond this relative error another result was computed in float32, whose time says nothing."""


@dataclass(frozen=True)
class Row:
    """One model's results; times in seconds, sizes in bytes.

    Attributes:
        model: Its name.
        workload: What everyone computed.
        compilation: What `optimize()` took; None when it failed.
        measured: By name the contestants that worked.
        absent: By name the others, and why.
        contest: The precision, and who takes part.
    """

    model: str
    workload: Workload
    compilation: Compilation | None
    measured: Mapping[str, Measurement]
    absent: Mapping[str, str]
    contest: Contest = FLOAT32

    @property
    def bound(self) -> float:
        """The relative error beyond which something else was computed."""
        return LARGEST_ERROR if self.contest is FLOAT32 else self.workload.bfloat16_bound

    @property
    def best(self) -> str | None:
        """The faster of the peers that we measure ourselves against."""
        return min(
            (name for name in self.contest.baselines if name in self.measured),
            key=lambda name: self.measured[name].seconds,
            default=None,
        )

    @property
    def traffic(self) -> int:
        """The bytes that a call cannot but read or write: each weight, the inputs and the outputs, once."""
        outputs = next(iter(self.measured.values())).outputs if self.measured else []
        return self.workload.weight_bytes + sum(array.nbytes for array in (*self.workload.inputs, *outputs))

    @property
    def limit(self) -> int:
        """The memory that `optimize()` may take: twice the model's bytes and 1 GB."""
        return 2 * self.workload.model_bytes + 10**9

    def speed_over(self, peer: str | None) -> Ratio | None:
        """How many times as fast as a peer we are; None where one of the two was not measured."""
        if peer is None or peer not in self.measured or TERSOR not in self.measured:
            return None
        return ratio(self.measured[peer], self.measured[TERSOR])

    def milliseconds(self, name: str) -> str:
        """A contestant's latency, or why there is none."""
        return f"{self.measured[name].seconds * 1e3:.2f}" if name in self.measured else self.absent[name]

    def speed_cells(self) -> tuple[str, ...]:
        """One text for each column of the contest's table."""
        times = (self.milliseconds(name) for name in self.contest.contestants)
        speeds = (self.speed_over(name) for name in self.contest.peers)
        best = self.speed_over(self.best)
        errors = {name: error for name in self.measured if (error := self.error(name)) is not None}
        worst = max(errors, key=lambda name: errors[name], default=None)
        return (
            self.model,
            *times,
            *("" if speed is None else f"{speed.median:.2f}" for speed in speeds),
            "" if best is None else str(best),
            "" if worst is None else f"{errors[worst]:.0e} {worst}",
            *((f"{self.bound:.2f}",) if self.contest.references else ()),
        )

    def compiling_cells(self) -> tuple[str, ...]:
        """One text for each column of `COMPILING`."""
        both = ORT in self.measured and TERSOR in self.measured
        error = self.error(TERSOR)
        cost = self.compilation
        return (
            self.model,
            self.milliseconds(ORT),
            self.milliseconds(TERSOR),
            str(ratio(self.measured[TERSOR], self.measured[ORT])) if both else "",
            "" if error is None else f"{error:.1e}",
            "" if cost is None else f"{cost.seconds:.1f}",
            "" if cost is None else f"{cost.peak / 1e6:.0f}",
            f"{self.limit / 1e6:.0f}",
            "" if cost is None else str(len(cost.notes)),
        )

    def error(self, name: str) -> float | None:
        """The relative error of a contestant beside ONNX Runtime; None where one of the two was not measured."""
        if name == ORT or name not in self.measured or ORT not in self.measured:
            return None
        return relative_error(self.measured[name].outputs, self.measured[ORT].outputs)


def geometric_mean(speeds: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(statistics.fmean(map(math.log, speeds)))


def means(rows: Sequence[Row]) -> str:
    """Our speed over the best of the baselines, and over each of the peers, in two sentences."""
    best = [speed.median for row in rows if (speed := row.speed_over(row.best)) is not None]
    if not best:
        return "Nothing was compared."
    contest = rows[0].contest
    single = []
    for peer in contest.peers:
        speeds = [speed.median for row in rows if (speed := row.speed_over(peer)) is not None]
        single.append(f"{geometric_mean(speeds):.2f} over {peer} ({len(speeds)})" if speeds else f"none over {peer}")
    return (
        f"Geometric mean of our speed over {_best_of(contest)}: **{geometric_mean(best):.2f}** "
        f"(models: {len(best)}).\nOver each alone: {', '.join(single)}."
    )


def _best_of(contest: Contest) -> str:
    names = " and ".join(contest.baselines)
    return names if len(contest.baselines) == 1 else f"the best of {names}"


def slower(rows: Sequence[Row]) -> list[str]:
    """A sentence for each model in which a peer is faster."""
    sentences = []
    for row in rows:
        speeds = {peer: speed.median for peer in row.contest.peers if (speed := row.speed_over(peer)) is not None}
        behind = [f"{1 / speed:.2f} times as long as {peer}" for peer, speed in speeds.items() if speed < 1]
        if behind:
            sentences.append(f"{row.model} takes {' and '.join(behind)}.")
    return sentences
