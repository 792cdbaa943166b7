"""The arena of a compiled model: one block of memory, in which each step finds its tensors where the plan puts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.relax.memory import Memory
from backends.relax.packing import ALIGNMENT, aligned_empty, element_type
from backends.relax.recent import Recent
from backends.relax.size_value import Formulas

__all__ = ["Storage", "aligned"]

Array = npt.NDArray[Any]


@dataclass
class _Laid:
    """The tensors of a step, for some sizes: their tuple, and where the slots lie in which there is so much room."""

    sizes: Mapping[str, int]
    room: Sequence[int]
    offsets: Sequence[int]
    tensors: Any


class Storage:
    """Memory for all steps of a plan, of which one runs at a time.

    The arena is taken at the first run and kept; it grows when sizes do. A layout is used again for other sizes as long
    as everything fits. Tensors are kept for the last few sizes, so that calls may go to and fro between them.

    Args:
        memories: of each step.
        bind: makes what a compiled function takes from arrays.
    """

    def __init__(self, memories: Sequence[Memory], bind: Callable[[Sequence[Array]], Any]) -> None:
        self._memories = memories
        self._bind = bind
        self._arena: npt.NDArray[np.uint8] = aligned_empty(0)
        self._laid: list[_Laid | None] = [None] * len(memories)
        self._formulas = [
            Formulas([*(slot.bytes for slot in m.slots), *(dim for b in m.buffers for dim in b.shape)])
            for m in memories
        ]
        self._kept = [Recent[_Laid]() for _ in memories]

    @property
    def bytes(self) -> int:
        """Length of the arena."""
        return self._arena.nbytes

    def tensors(self, step: int, sizes: Mapping[str, int]) -> Any:
        """What the step's function takes as its memory, for these sizes."""
        laid = self._laid[step]
        if laid is None or laid.sizes != sizes:
            found = self._kept[step].get(sizes)
            laid = self._laid[step] = self._lay_out(step, sizes, laid) if found is None else found
        return laid.tensors

    def aligned(self, step: int, position: int, array: Array) -> Array:
        """An input as kernels can read it: itself, or a copy in the arena. `tensors` was called for its sizes."""
        laid, slot = self._laid[step], self._memories[step].inputs[position]
        if laid is None or slot < 0 or _is_aligned(array):
            return aligned(array)
        copy = self._view(laid.offsets[slot], array.dtype, array.shape)
        copy[...] = array
        return copy

    def _lay_out(self, step: int, sizes: Mapping[str, int], before: _Laid | None) -> _Laid:
        memory = self._memories[step]
        values = self._formulas[step].values(sizes)
        needed, dims = values[: len(memory.slots)], iter(values[len(memory.slots) :])
        if before is not None and all(size <= room for size, room in zip(needed, before.room, strict=True)):
            room, offsets = before.room, before.offsets
        else:
            room = memory.room(needed)
            placement = memory.placement(room)
            offsets = placement.offsets
            self._reserve(placement.bytes)
        views: dict[tuple[int, str, tuple[int, ...]], Array] = {}  # layers alike have tensors alike
        tensors = []
        for buffer in memory.buffers:
            key = (
                offsets[buffer.slot] + buffer.offset,
                buffer.dtype,
                tuple(islice(dims, len(buffer.shape))),
            )
            if key not in views:
                views[key] = self._view(key[0], element_type(key[1]), key[2])
            tensors.append(views[key])
        return self._kept[step].keep(sizes, _Laid(dict(sizes), room, offsets, self._bind(tensors)))

    def _reserve(self, size: int) -> None:
        if size > self._arena.nbytes:
            self._laid = [None] * len(self._memories)  # their tensors lie in the arena that goes now
            for kept in self._kept:
                kept.clear()
            self._arena = aligned_empty(0)
            self._arena = aligned_empty(size)

    def _view(self, offset: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        size = prod(shape) * dtype.itemsize
        view: Array = self._arena[offset : offset + size].view(dtype).reshape(shape)
        return view


def aligned(array: Array) -> Array:
    """The array itself if a kernel can read it in place, else a copy that it can (DLPack refuses what is read-only)."""
    if _is_aligned(array):
        return array
    copy = aligned_empty(max(array.nbytes, 1))[: array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _is_aligned(array: Array) -> bool:
    return array.ctypes.data % ALIGNMENT == 0 and array.flags.c_contiguous and array.flags.writeable
