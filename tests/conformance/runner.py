"""Run cases in processes of their own, so that a crash or a hang is an outcome like any other."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from tests.conformance.cases import Fallback, Outcome, cases, run_case

SHARE = 50
"""Cases that a process is handed at a time."""

START_SECONDS = 120.0


def run(
    names: Sequence[str], fallback: Fallback, *, target: str = "cpu", jobs: int = 2, patience: float = 60.0
) -> Iterator[Outcome]:
    """Each case's outcome, in the order of the names.

    Args:
        names: The cases.
        fallback: What `optimize` does with operators that the target cannot compile.
        target: What `optimize` compiles for.
        jobs: How many processes at a time.
        patience: Seconds after which a silent process counts as hanging.
    """
    shares = [names[start : start + SHARE] for start in range(0, len(names), SHARE)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(jobs) as threads:
        workers = [stack.enter_context(contextlib.closing(_Worker())) for _ in range(min(jobs, len(shares)))]
        idle = list(workers)

        def serve(share: Sequence[str]) -> list[Outcome]:
            worker = idle.pop()
            try:
                return [worker.run(name, fallback, target, patience) for name in share]
            finally:
                idle.append(worker)

        for outcomes in threads.map(serve, shares):
            yield from outcomes


class _Worker:
    """A process that runs cases, started again after a crash or a hang."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, name: str, fallback: Fallback, target: str, patience: float) -> Outcome:
        pipe = self._started()
        pipe.send((name, fallback, target))
        if not pipe.poll(patience):
            self.close()
            return Outcome(name, "hung", f"no answer within {patience:.0f} seconds")
        try:
            outcome: Outcome = pipe.recv()
        except EOFError:
            process = self._process
            if process is not None:
                process.join(10)
            code = None if process is None else process.exitcode
            self.close()
            return Outcome(name, "crashed", f"exit code {code}")
        return outcome

    def close(self) -> None:
        """End the process, and the compiler that it may have started."""
        if self._process is None or self._pipe is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid or 0, signal.SIGKILL)
        self._process.join()
        self._pipe.close()
        self._process = self._pipe = None

    def _started(self) -> Connection:
        if self._pipe is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,))
            self._process.start()
            theirs.close()
            if not self._pipe.poll(START_SECONDS):
                self.close()
                raise TimeoutError(f"a conformance process did not start within {START_SECONDS:.0f} seconds")
            self._pipe.recv()
        return self._pipe


def _serve(pipe: Connection) -> None:
    os.setsid()
    warnings.simplefilter("ignore")
    cases()
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(run_case(*pipe.recv()))
