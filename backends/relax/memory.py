"""The memory that a step needs for what it computes: as the compiler plans it, and what it comes to for given sizes.

Plain data and arithmetic: `memory_plan` makes it in the compile process, `storage` lays the tensors out by it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.relax.arena import Placement, most_alive, place
from backends.relax.size_value import Formula, evaluate

__all__ = ["PAGE", "Buffer", "Memory", "Slot", "Workspace", "in_pages", "scratch_bytes"]

PAGE = 4096
"""Bytes; TVM's allocators give whole pages."""

_ROOM = 16
"""A slot of symbolic size is planned longer by at most this part of it, so that a few more tokens still fit."""


@dataclass
class Slot:
    """A place in the arena, for tensors of which each dies where the next one is written over it.

    Attributes:
        bytes: its length.
        first, last: the steps of the function between which it is taken, both included.
    """

    bytes: Formula
    first: int
    last: int


@dataclass
class Buffer:
    """A tensor in the arena: its slot, and how it is seen there.

    Attributes:
        slot: its slot.
        shape: its sizes.
        dtype: of its elements.
        offset: where in the slot it begins, in bytes.
    """

    slot: int
    shape: list[Formula]
    dtype: str
    offset: int = 0


@dataclass
class Workspace:
    """Memory that a kernel takes for itself while it runs, from a pool of the thread.

    Attributes:
        bytes: how much; `None` gives back what was taken last.
        tasks: iterations of the parallel loop that it is in; 0 outside of one, where only the caller takes it.
    """

    bytes: Formula | None
    tasks: Formula = 0


@dataclass
class Memory:
    """What a compiled step needs besides its weights.

    Attributes:
        slots, buffers: the arena; each buffer is passed to the function as a tensor.
        inputs: for each tensor that the step takes, the slot into which it is copied if it is not aligned, -1 for none.
        outputs: bytes of each tensor that the step gives, and that therefore is no part of the arena.
        kernels: the kernels that it calls, in order.
        offsets, bytes: of the slots and of the arena, for known sizes; empty and -1 where they are symbolic.
        complete: whether everything is counted; a size that only a kernel computes is not.
    """

    slots: list[Slot] = field(default_factory=list)
    buffers: list[Buffer] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[Formula] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    bytes: int = -1
    complete: bool = True

    def lengths(self, sizes: Mapping[str, int]) -> list[int]:
        """Bytes that each slot must have for these sizes."""
        return [evaluate(slot.bytes, sizes) for slot in self.slots]

    def room(self, lengths: Sequence[int]) -> list[int]:
        """Bytes that each slot gets: a little more than it must have, where its size is symbolic."""
        return [
            length if isinstance(slot.bytes, int) else _roomy(length)
            for slot, length in zip(self.slots, lengths, strict=True)
        ]

    def placement(self, room: Sequence[int]) -> Placement:
        """Where slots that get so much room lie."""
        if self.bytes >= 0:
            return Placement(tuple(self.offsets), self.bytes)
        return place(room, self.lifetimes())

    def least(self, sizes: Mapping[str, int]) -> int:
        """The most bytes that live at one time."""
        return most_alive(self.lengths(sizes), self.lifetimes())

    def lifetimes(self) -> list[tuple[int, int]]:
        """Of the slots."""
        return [(slot.first, slot.last) for slot in self.slots]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Memory:
        """The inverse of `dataclasses.asdict`.

        Raises:
            KeyError, TypeError: the data is not such a plan.
        """
        slots = [Slot(**slot) for slot in data["slots"]]
        buffers = [Buffer(**buffer) for buffer in data["buffers"]]
        return cls(**{**data, "slots": slots, "buffers": buffers})


def in_pages(size: int) -> int:
    """The size in bytes, up to whole pages."""
    return -(-size // PAGE) * PAGE


def _roomy(size: int) -> int:
    step = max(1, 1 << max(0, size.bit_length() - 1) >> (_ROOM.bit_length() - 1))
    return -(-size // step) * step


def scratch_bytes(calls: Iterable[Sequence[Workspace]], sizes: Mapping[str, int], threads: int) -> int:
    """What the pools of all threads keep of the workspaces of these calls, the most in two runs.

    Args:
        calls: the workspaces of each kernel, in the order of the calls.
        sizes: values of symbolic sizes.
        threads: of the pool; each takes an equal share of a parallel loop's iterations, the last ones less or none.
    """
    calls = [workspaces for workspaces in calls if workspaces]
    return sum(_pool_bytes(calls, sizes, thread, threads) for thread in range(threads))


def _pool_bytes(calls: Sequence[Sequence[Workspace]], sizes: Mapping[str, int], thread: int, threads: int) -> int:
    pool = _Pool()
    for workspaces in (*calls, *calls):
        taken: list[int | None] = []  # None: not by this thread
        for workspace in workspaces:
            if workspace.bytes is None:
                size = taken.pop()
                if size is not None:
                    pool.give_back(size)
            elif _takes_part(evaluate(workspace.tasks, sizes), thread, threads):
                taken.append(pool.take(evaluate(workspace.bytes, sizes)))
            else:
                taken.append(None)
    return pool.most


def _takes_part(tasks: int, thread: int, threads: int) -> bool:
    return thread == 0 if tasks == 0 else thread * -(-tasks // threads) < tasks


class _Pool:
    """TVM's pool of a thread (`runtime/workspace_pool.cc`): the smallest that fits, or the largest grows."""

    def __init__(self) -> None:
        self.free: list[int] = []
        self.total = 0
        self.most = 0

    def take(self, size: int) -> int:
        """Gives the length, in bytes, of the block that serves."""
        size = max(PAGE, in_pages(size))
        position = bisect_left(self.free, size)
        if position < len(self.free):
            return self.free.pop(position)
        if self.free:
            self.total -= self.free.pop()
        self.total += size
        self.most = max(self.most, self.total)
        return size

    def give_back(self, block: int) -> None:
        """A block of this length is free again."""
        insort(self.free, block)
