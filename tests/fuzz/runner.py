"""Run mutants through `optimize` in processes of their own, so that a crash or a hang is seen and counted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

from optimizer import optimize
from optimizer.errors import TersorError
from tests.fuzz.mutants import mutant

MEMORY_LIMIT = 16 << 30  # Bytes of address space: a model that asks for petabytes must not take the machine along.
HANG_SECONDS = 60.0
START_SECONDS = 120.0
SHARE = 100  # Cases that one process runs before a new one takes over.

Kind = Literal["accepted", "refused", "foreign", "crash", "hang"]
GOOD: frozenset[Kind] = frozenset({"accepted", "refused"})


@dataclass(frozen=True)
class Case:
    """One mutant on its way to one target."""

    seed: int
    target: str


Check = Callable[[Case, Path], tuple[Kind, str]]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        kind: `refused` is an error of ours, `foreign` any other exception.
        detail: The exception's type and message, or the signal.
        seconds: How long it took.
    """

    case: Case
    kind: Kind
    detail: str
    seconds: float

    def __str__(self) -> str:
        story, _ = mutant(self.case.seed)
        return f"seed {self.case.seed} to {self.case.target} ({story}): {self.kind}: {self.detail}"


def optimize_mutant(case: Case, folder: Path) -> tuple[Kind, str]:
    """Write the mutant into the folder and optimize it; what came out, and its description."""
    path = folder / "model.onnx"
    path.write_bytes(mutant(case.seed)[1])
    try:
        optimize(path, target=case.target)
    except TersorError as error:
        return "refused", _described(error)
    except BaseException as error:  # noqa: BLE001  # whatever else comes out is what we look for
        return "foreign", f"{_described(error)} at {_place(error)}"
    left = sorted(entry.name for entry in folder.iterdir() if entry != path)
    return ("foreign", f"left files behind: {left}") if left else ("accepted", "")


def run(
    cases: Sequence[Case], jobs: int = 2, check: Check = optimize_mutant, patience: float = HANG_SECONDS
) -> Iterator[Outcome]:
    """Each case's outcome, in the order of the cases.

    Args:
        cases: What to run.
        jobs: How many processes at a time.
        check: What a process does with a case and an empty folder of its own; picklable.
        patience: Seconds after which a silent process counts as hanging.
    """
    shares = [cases[start : start + SHARE] for start in range(0, len(cases), SHARE)]
    with ThreadPoolExecutor(jobs) as pool:
        for outcomes in pool.map(lambda share: _run_share(share, check, patience), shares):
            yield from outcomes


def _run_share(cases: Sequence[Case], check: Check, patience: float) -> list[Outcome]:
    """Run cases in one worker, and in a new one after each crash or hang."""
    worker = _Worker(check)
    try:
        outcomes = []
        for case in cases:
            outcomes.append(worker.run(case, patience))
            if outcomes[-1].kind in ("crash", "hang"):
                worker.stop()
                worker = _Worker(check)
        return outcomes
    finally:
        worker.stop()


class _Worker:
    """A process that optimizes what it is told to."""

    def __init__(self, check: Check) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.folder = tempfile.TemporaryDirectory(prefix="fuzz-")  # Outlives the worker, however that ends.
        self.process: BaseProcess = context.Process(target=_serve, args=(theirs, check, self.folder.name))
        self.process.start()
        theirs.close()
        if not self.pipe.poll(START_SECONDS):
            self.stop()
            raise TimeoutError(f"a fuzzing process did not start within {START_SECONDS:.0f} seconds")
        self.pipe.recv()

    def run(self, case: Case, patience: float) -> Outcome:
        start = time.perf_counter()
        self.pipe.send(case)
        if not self.pipe.poll(patience):
            return Outcome(case, "hang", f"no answer within {patience:.0f} seconds", patience)
        try:
            kind, detail = self.pipe.recv()
        except EOFError:
            self.process.join(10)
            kind, detail = "crash", f"exit code {self.process.exitcode}"
        return Outcome(case, kind, detail, time.perf_counter() - start)

    def stop(self) -> None:
        """End the worker and the compiler that it may have started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.pipe.close()
        self.folder.cleanup()


def _serve(pipe: Connection, check: Check, folder_of_all: str) -> None:
    os.setsid()
    tempfile.tempdir = os.environ["TMPDIR"] = folder_of_all
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    pipe.send("ready")
    while True:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EOFError):
            pipe.send(check(pipe.recv(), Path(folder)))
            continue
        return


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]!r}"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
