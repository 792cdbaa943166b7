"""Peak memory of a process and of those that it starts (Linux)."""

from __future__ import annotations

import threading
from pathlib import Path

_PROC = Path("/proc")
PERIOD_SECONDS = 0.005


class PeakMemory:
    """Watch a process until it ends.

    The peak is the largest sum of what all of them had at one moment, looked at every few milliseconds; pages that two
    of them share count twice. It is never less than the peak of a single process, which the kernel itself keeps.
    """

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The peak in bytes."""
        self._done.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._done.wait(PERIOD_SECONDS):
            figures = [resident(pid) for pid in family(self._root) if not borrows_memory(pid)]
            together = sum(now for now, _ in figures)
            self._peak = max(self._peak, together, *(most for _, most in figures))


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


def borrows_memory(pid: int) -> bool:
    """Whether a process is about to start a program (`vfork`): until then it has its parent's memory and command."""
    try:
        status = (_PROC / str(pid) / "stat").read_text()
        parent = status.rpartition(")")[2].split()[1]
        own, other = ((_PROC / each / "cmdline").read_bytes() for each in (str(pid), parent))
    except (FileNotFoundError, ProcessLookupError):
        return True
    return own == other


def resident(pid: int) -> tuple[int, int]:
    """The physical memory that a process has now and the most it has had, in bytes; 0 when it is gone."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    lines = dict(line.split(":", 1) for line in status.splitlines())
    now, most = (int(lines.get(name, "0 kB").split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, most
