"""In a process of its own: load a saved model, run it, and print what the process has allocated meanwhile.

Usage: python allocated.py WARM_UP.tersor MODEL.tersor. Prints planned bytes, allocated bytes, and grown resident bytes.
Nothing here knows the plan: the C library says what it has handed out (`malloc_info`), the kernel what is resident.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

from optimizer import load
from optimizer.compiled import CompiledModel
from optimizer.memory import give_back_free_memory


def allocated() -> int:
    """Bytes that `malloc` and its like have handed out and not got back, in all arenas and by mapping."""
    libc = ctypes.CDLL(None)
    libc.fdopen.restype = ctypes.c_void_p
    with tempfile.TemporaryFile() as file:
        stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        file.seek(0)
        text = file.read().decode()
    whole = text[text.rindex("</heap>") :]

    def size(pattern: str) -> int:
        found = re.search(pattern + r'[^>]* size="(\d+)"', whole)
        assert found is not None
        return int(found[1])

    free = size('<total type="fast"') + size('<total type="rest"')
    return size('<system type="current"') - free + size('<total type="mmap"')


def resident() -> int:
    """Bytes of memory that is not a file's."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def inputs_of(model: CompiledModel) -> list[np.ndarray]:
    """Ones: every index that they might be is there."""
    return [np.ones([d if isinstance(d, int) else 7 for d in s.shape or ()], s.dtype) for s in model.inputs]


def main() -> None:
    """See the top."""
    warm_up, path = sys.argv[1:]
    small = load(warm_up)
    for _ in range(3):
        small(*inputs_of(small))
    model = load(path)
    inputs = inputs_of(model)
    give_back_free_memory()
    before, pages = allocated(), resident()
    outputs = model(*inputs)
    held, grown = allocated() - before, resident() - pages
    assert outputs is not None
    assert model.memory is not None
    print(model.memory.peak, held, grown)


if __name__ == "__main__":
    main()
