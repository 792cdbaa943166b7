"""Measure the alternatives of a model's choices inside the model itself, and keep those that are faster.

One trial compiles the whole graph with another value for as many choices as have different kernels, and runs it in
turn with the model as it was. The time of each choice is that of its kernels, with their fused tails, and with the
caches as the run leaves them: a kernel alone in a loop would find its weights in a nearer cache than in the model.

A value wins if its kernels take less than 0.97 of the time (see `gain`). In the end the model with all winners is timed
against the model as it was: who is faster once more is used from then on, the others are forgotten.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from backends.base import Progress
from optimizer.cache.winners import Winner, Winners
from optimizer.errors import CompileError
from optimizer.executable import Executable
from optimizer.tuning import Change, Decision, Tuning

__all__ = ["Tunable", "Tuner", "gain"]

_GAIN = 0.97
"""Less is noise: the same kernel, built twice, differs by that much on a machine with other users."""
_CONFIRMED = 0.985
"""The second time; who was measured because he won the first time had luck, too."""
_ROUNDS = 9
_BURST_SECONDS = 0.08
_BURST_RUNS = (2, 20)
_MARGIN = 1.1
"""A compilation may take so many times as long as the one before."""

Alternative = tuple[Decision, int]
Times = list[list[float]]
"""Of each round the times of one contestant, the shortest of a burst, one for each thing that is timed."""


class Tunable(Executable, Protocol):
    """A compiled model whose kernels can be told apart."""

    @property
    def decisions(self) -> list[Decision]:
        """What was chosen for it where there are alternatives."""
        ...

    def kernel_seconds(self, inputs: Sequence[Any], num_threads: int) -> list[tuple[tuple[str, ...], float]]:
        """The nodes of each kernel and its seconds in one run."""
        ...


@dataclass
class Tuner:
    """The search for one model.

    Attributes:
        limit: Seconds that it may take.
        winners: What is known, and where it is kept.
        compile: Compiles the graph with these values for its choices.
        inputs: To run with.
        num_threads: Of the runs.
        progress: Told what is going on.
    """

    limit: float
    winners: Winners
    compile: Callable[[dict[str, int]], Tunable]
    inputs: Sequence[Any]
    num_threads: int
    progress: Progress

    def tune(self, before: Tunable, compile_seconds: float) -> tuple[Tunable, Tuning]:
        """Measure until all alternatives or the time are used up.

        Args:
            before: The model, compiled with what `winners` is sure of.
            compile_seconds: How long that took.

        Returns:
            The faster model, which may be the one before; and what was found.
        """
        search = _Search(self, before, compile_seconds)
        search.try_alternatives()
        after, ratio = search.confirm()
        took = time.perf_counter() - search.start
        changes = tuple(_changes(after.decisions, self.winners.known))
        left, note = len(search.waiting), search.note
        numbers = len(before.decisions), len(search.known), search.measured, left
        return after, Tuning(self.limit, took, *numbers, changes, ratio, note)


class _Search:
    """One call of `Tuner.tune`."""

    def __init__(self, tuner: Tuner, before: Tunable, compile_seconds: float) -> None:
        self.start = time.perf_counter()
        self.tuner, self.winners, self.before = tuner, tuner.winners, before
        found = ((d, self.winners.known.get(d.key)) for d in before.decisions)
        self.known = {d.key: w for d, w in found if w is not None and w.confirmed and w.value == d.value}
        """What the model before was compiled with, where that was measured."""
        self.waiting = [pair for decision in before.decisions for pair in self._untried(decision)]
        self.compile_seconds, self.measured, self.note = compile_seconds, 0, ""
        self.runs, self.duel_seconds = self._burst() if self.waiting or self._unconfirmed() else (1, 0.0)

    def try_alternatives(self) -> None:
        """As many as there is time for, beside the time to confirm what won."""
        while self.waiting:
            if not self._has_time(2):
                if not self.measured:
                    needed = 2 * self._trial_seconds()
                    self.note = f"tune: too little time: this model takes {needed:.1f} s to try anything"
                return
            chosen = _apart(self.waiting)
            self.tuner.progress(f"{len(chosen)} of {len(self.waiting)} alternatives")
            try:
                _, times = self._duel(chosen)
            except CompileError as error:
                times = None
                self.note = f"tune: an alternative could not be compiled: {error}"
            self.winners.keep(dict(self._judged(chosen, times)))
            self.measured += len(chosen)
            self.waiting = [pair for pair in self.waiting if pair not in chosen]

    def confirm(self) -> tuple[Tunable, float | None]:
        """Compile the model with all winners, and measure once more; what is no faster then is forgotten.

        Returns:
            That model, and its time over that of the one before; or that one and `None`.
        """
        while (chosen := self._unconfirmed()) and self._has_time(1):
            self.tuner.progress(f"{len(chosen)} winners together")
            try:
                after, (before_times, after_times) = self._duel(chosen)
            except CompileError as error:
                self.note = f"tune: the winners could not be compiled together: {error}"
                self.winners.keep({decision.key: self._without(decision) for decision, _ in chosen})
                break
            ratios = [gain(*pair) for pair in zip(_columns(before_times), _columns(after_times), strict=True)]
            faster = ratios.pop() < 1.0  # the whole run
            good = [faster and ratio < _CONFIRMED for ratio in ratios]
            pairs = list(zip(chosen, good, strict=True))
            self.winners.keep(
                {decision.key: self._without(decision) for (decision, _), is_good in pairs if not is_good}
            )
            if all(good):
                known = self.winners.known
                self.winners.keep(
                    {decision.key: replace(known[decision.key], confirmed=True) for decision, _ in chosen}
                )
                whole = zip(before_times, after_times, strict=True)
                return after, statistics.median(b[-1] / a[-1] for a, b in whole)
        return self.before, None

    def _duel(self, chosen: Sequence[Alternative]) -> tuple[Tunable, tuple[Times, Times]]:
        """Compile the model with these values, and time it beside the one before."""
        began = time.perf_counter()
        after = self.tuner.compile(self.winners.values | {decision.key: value for decision, value in chosen})
        self.compile_seconds = time.perf_counter() - began
        before_times, after_times = _alternating(
            [self._kernels(each, chosen) for each in (self.before, after)], self.runs
        )
        return after, (before_times, after_times)

    def _kernels(self, executable: Tunable, chosen: Sequence[Alternative]) -> Callable[[], list[float]]:
        """One run; gives the seconds of the kernels of each decision, and of all kernels of the model."""
        place = {node: i for i, (decision, _) in enumerate(chosen) for node in decision.nodes}

        def run() -> list[float]:
            seconds = [0.0] * (len(chosen) + 1)
            for nodes, own in executable.kernel_seconds(self.tuner.inputs, self.tuner.num_threads):
                for i in {place[node] for node in nodes if node in place} | {len(chosen)}:
                    seconds[i] += own
            return seconds

        return run

    def _judged(self, chosen: Sequence[Alternative], times: tuple[Times, Times] | None) -> Iterator[tuple[str, Winner]]:
        """What is known of these decisions after a trial; `None` for the times of one that failed."""
        columns = [[1.0, 1.0]] * len(chosen) if times is None else zip(*map(_columns, times), strict=True)
        for (decision, value), pair in zip(chosen, columns, strict=False):
            known = self.winners.known.get(decision.key) or Winner(decision.value, 1.0, ())
            ratio = 1.0 if times is None else gain(*pair)
            tried, whole = (*known.tried, value), ratio * self._ratio(decision)
            wins = ratio < _GAIN and whole < known.ratio
            yield decision.key, Winner(value, whole, tried, confirmed=False) if wins else replace(known, tried=tried)

    def _untried(self, decision: Decision) -> list[Alternative]:
        winner = self.winners.known.get(decision.key)
        tried = (decision.value, *(() if winner is None else winner.tried))
        _analytic, *others = decision.costs
        return [(decision, value) for value in others if value not in tried]

    def _unconfirmed(self) -> list[Alternative]:
        """The winners of trials, of this call or of one that was interrupted; the best one for each kernel."""
        found = ((decision, self.winners.known.get(decision.key)) for decision in self.before.decisions)
        waiting = [(d, w) for d, w in found if w is not None and not w.confirmed and w.value in d.costs]
        return _apart([(d, w.value) for d, w in sorted(waiting, key=lambda pair: pair[1].ratio)])

    def _without(self, decision: Decision) -> Winner:
        """What is known of a decision whose winner was none."""
        return Winner(decision.value, self._ratio(decision), self.winners.known[decision.key].tried)

    def _ratio(self, decision: Decision) -> float:
        """The time of its kernels in the model before over that with the analytic value."""
        return self.known[decision.key].ratio if decision.key in self.known else 1.0

    def _trial_seconds(self) -> float:
        return self.compile_seconds * _MARGIN + self.duel_seconds

    def _has_time(self, trials: int) -> bool:
        return time.perf_counter() - self.start + trials * self._trial_seconds() <= self.tuner.limit

    def _burst(self) -> tuple[int, float]:
        """How many runs make a burst, and the seconds of a duel."""
        run = partial(self.before.run, self.tuner.inputs, self.tuner.num_threads)
        run()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        runs = min(max(math.ceil(_BURST_SECONDS / seconds), _BURST_RUNS[0]), _BURST_RUNS[1])
        return runs, 2 * _ROUNDS * (runs + 1) * seconds


def _apart(waiting: Sequence[Alternative]) -> list[Alternative]:
    """As many alternatives, in order, as shape different kernels."""
    chosen: list[Alternative] = []
    taken: set[str] = set()
    for decision, value in waiting:
        if taken.isdisjoint(decision.nodes):
            taken.update(decision.nodes)
            chosen.append((decision, value))
    return chosen


def _alternating(contestants: Sequence[Callable[[], list[float]]], runs: int) -> list[Times]:
    """Bursts of runs in turn, the order reversed every other round."""
    times: list[Times] = [[] for _ in contestants]
    for turn in range(_ROUNDS):
        for i in range(len(contestants))[:: -1 if turn % 2 else 1]:
            contestants[i]()  # finds its weights, and brings them back into the caches
            times[i].append([min(each) for each in zip(*(contestants[i]() for _ in range(runs)), strict=True)])
    return times


def _columns(times: Times) -> list[list[float]]:
    """By thing that is timed, not by round."""
    return [list(column) for column in zip(*times, strict=True)]


def gain(before: Sequence[float], after: Sequence[float]) -> float:
    """The ratio of two times, 1 or more where noise explains it.

    Args:
        before: The shortest times of each round.
        after: The same in the same rounds.

    Returns:
        The larger of two: the median of the rounds' ratios, and the ratio of the shortest times at all, which on a
        machine with other users are those that nobody disturbed.
    """
    ratios = [b / a for a, b in zip(before, after, strict=True) if a]
    if not ratios:
        return 1.0
    ratio = max(statistics.median(ratios), min(after) / min(before))
    in_three_of_four = statistics.quantiles(ratios, n=4, method="inclusive")[2] < 1.0
    return ratio if in_three_of_four else max(ratio, 1.0)


def _changes(decisions: Sequence[Decision], known: Mapping[str, Winner]) -> Iterator[Change]:
    """What is not as the tile model alone would have it."""
    for decision in decisions:
        analytic = next(iter(decision.costs))
        if decision.value != analytic:
            measured = known[decision.key].ratio if decision.key in known else 1.0
            predicted = decision.costs[decision.value]
            nodes = len(decision.nodes)
            yield Change(decision.key, analytic, decision.value, predicted, measured, nodes)
