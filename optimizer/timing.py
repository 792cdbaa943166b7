"""Fair timing of contestants whose thread pools spin.

A pool that has just finished keeps its cores busy for a while, so two contestants in one process slow each other by
half. Here each contestant has a process of its own (spawned, so that nothing is inherited), and they are measured in
turn, in bursts, the order reversed every other round, so that drift of the machine hits all alike. A ratio is taken
within each round and its median reported with the quartiles.
"""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from optimizer.errors import TersorError

Outputs = Sequence[np.ndarray]
Build = Callable[[], Callable[[], Outputs]]

WARM_UP_CALLS = 5
BURST_SECONDS = 0.15
BURST_CALLS = (3, 50)
PAUSE_SECONDS = 0.05  # Lets the previous contestant's pool stop spinning.
START_SECONDS = 600.0

_TOLD_TO_THE_PARENT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TersorError,
    TypeError,
    ValueError,
)


class ContestantFailed(TersorError):
    """A contestant raised or died; the message has its name and its own words."""


@dataclass(frozen=True)
class Measurement:
    """What one contestant did.

    Attributes:
        outputs: What its first call returned.
        bursts: Seconds of each call, one list a round.
    """

    outputs: list[np.ndarray]
    bursts: list[list[float]]

    @property
    def seconds(self) -> float:
        """The median of all calls, in seconds."""
        return statistics.median(call for burst in self.bursts for call in burst)


@dataclass(frozen=True)
class Ratio:
    """How many times as long as a baseline: the median of the rounds, and their quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(of: Measurement, to: Measurement) -> Ratio:
    """The ratio of two contestants of the same competition, round by round."""
    pairs = zip(of.bursts, to.bursts, strict=True)
    ratios = sorted(statistics.median(mine) / statistics.median(base) for mine, base in pairs)
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def relative_error(outputs: Outputs, expected: Outputs) -> float:
    """The largest norm of a difference over the norm of what was expected, over all outputs."""
    if len(outputs) != len(expected):
        return math.inf
    return max((_relative_error(mine, theirs) for mine, theirs in zip(outputs, expected, strict=True)), default=0.0)


def _relative_error(output: np.ndarray, expected: np.ndarray) -> float:
    if output.shape != expected.shape:
        return math.inf
    difference, size = np.linalg.norm(output.astype(float) - expected), np.linalg.norm(expected.astype(float))
    if not np.isfinite(difference):
        return math.inf
    return float(difference / size) if size else float(difference)


def compete(contestants: Mapping[str, Build], rounds: int = 15) -> dict[str, Measurement]:
    """Measure the contestants in turn, each in a process of its own.

    Args:
        contestants: By name a picklable function that builds what is timed; it runs in the contestant's process.
        rounds: How often each contestant has its turn.

    Raises:
        ContestantFailed: One of them raised or died.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[str, tuple[BaseProcess, Connection]] = {}
    try:
        outputs = {}
        for name, build in contestants.items():
            here, there = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(there, build), daemon=True)
            process.start()
            there.close()
            running[name] = process, here
            outputs[name] = _receive(name, here)
        bursts: dict[str, list[list[float]]] = {name: [] for name in contestants}
        for turn in range(rounds):
            for name in list(contestants)[:: -1 if turn % 2 else 1]:
                time.sleep(PAUSE_SECONDS)
                running[name][1].send(True)
                bursts[name].append(_receive(name, running[name][1]))
        return {name: Measurement(outputs[name], bursts[name]) for name in contestants}
    finally:
        for process, pipe in running.values():
            pipe.close()
            process.join(5)
            process.terminate()


def _receive(name: str, pipe: Connection) -> list:  # type: ignore[type-arg]  # arrays at first, then seconds
    if not pipe.poll(START_SECONDS):
        raise ContestantFailed(f"{name} said nothing for {START_SECONDS:.0f} seconds")
    try:
        answer = pipe.recv()
    except EOFError:
        raise ContestantFailed(f"{name} died without a word") from None
    if isinstance(answer, str):
        raise ContestantFailed(f"{name} failed: {answer}")
    return list(answer)


def _serve(pipe: Connection, build: Build) -> None:
    """The life of a contestant: build, answer with the outputs, then with a burst's times at each request."""
    try:
        call = build()
        outputs = [np.asarray(output) for output in call()]
        warm_up = [_timed(call) for _ in range(WARM_UP_CALLS)]
        pipe.send(outputs)  # After the warm-up, which would go on beside the next contestant's.
        calls = min(max(math.ceil(BURST_SECONDS / min(warm_up)), BURST_CALLS[0]), BURST_CALLS[1])
        while pipe.recv():
            call()  # Wakes the pool.
            pipe.send([_timed(call) for _ in range(calls)])
    except (EOFError, BrokenPipeError):
        return
    except _TOLD_TO_THE_PARENT as error:
        pipe.send(f"{type(error).__name__}: {str(error)[:500]}")


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
