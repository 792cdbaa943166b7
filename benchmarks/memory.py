"""Peak memory of a process and of those that it starts (Linux)."""

from __future__ import annotations

import threading
from pathlib import Path

_PROC = Path("/proc")
PERIOD_SECONDS = 0.02


class PeakMemory:
    """Watch a process until it ends.

    The peak of each process is the kernel's own (`VmHWM`), so none is missed between two looks; they are added as if
    all had been at the same time, and pages that two of them share count twice. The sum is therefore an upper bound.
    """

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._peaks: dict[int, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The peak in bytes."""
        self._done.set()
        self._thread.join()
        return sum(self._peaks.values())

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_SECONDS):
            for pid in family(self._root):
                self._peaks[pid] = max(self._peaks.get(pid, 0), high_water_mark(pid))


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        try:
            for task in (_PROC / str(current) / "task").iterdir():
                waiting.extend(int(child) for child in (task / "children").read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def high_water_mark(pid: int) -> int:
    """The most physical memory that a process has had, in bytes; 0 when it is gone."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
