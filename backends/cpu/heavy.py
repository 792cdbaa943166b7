"""A kernel that begins with a heavy operator: its nest, and what cannot be done on its register tile."""

from __future__ import annotations

from collections.abc import Callable

from backends.cpu import generic
from backends.cpu.epilogue import Epilogue
from backends.relax.kernel import Kernel
from backends.relax.loops import Stmt, allocate, sequence
from optimizer.target import Cpu

__all__ = ["with_epilogue"]


def with_epilogue(kernel: Kernel, cpu: Cpu, build: Callable[[Epilogue], Stmt]) -> Stmt:
    """The loop nests of a kernel whose first stage is heavy.

    Args:
        kernel: the heavy stage and what follows it.
        cpu: the target.
        build: gives the nest of the heavy stage, which does the epilogue's tail as it stores.
    """
    epilogue = Epilogue.of(kernel)
    nest = build(epilogue)
    if not epilogue.rest:
        return nest
    following = generic.lower(Kernel(kernel.function, epilogue.rest), cpu)
    return allocate([epilogue.heavy.buffer], sequence([nest, following]))
