"""A kernel that begins with a heavy operator: its launch, and launches for what cannot be done on its tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from backends.gpu import generic
from backends.gpu.epilogue import Epilogue
from backends.gpu.launch import Launch
from backends.relax.kernel import Kernel
from optimizer.gpus import Gpu

__all__ = ["with_epilogue"]


def with_epilogue(kernel: Kernel, gpu: Gpu, build: Callable[[Epilogue], Launch]) -> list[Launch]:
    """The launches of a kernel whose first stage is heavy.

    Args:
        kernel: the heavy stage and what follows it.
        gpu: the target.
        build: gives the launch of the heavy stage, which does the epilogue's tail as it stores.
    """
    epilogue = Epilogue.of(kernel)
    if epilogue is not None:
        return [build(epilogue)]
    heavy, *others = kernel.stages
    launch = build(Epilogue(heavy, None))
    if not kernel.is_output(heavy.buffer):
        launch = replace(launch, scratch=(*launch.scratch, heavy.buffer))
    return [launch, *generic.lower(Kernel(kernel.function, tuple(others)), gpu)]
