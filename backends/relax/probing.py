"""The peak of the processor at hand, by the probe that every compiled module has: see `backends.cpu.probe`."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

import numpy as np

from backends.relax.packing import aligned_empty
from backends.relax.plan import PROBE, PROBE_FLOPS_A_LANE
from backends.relax.runtime import as_tensor, ffi
from optimizer.cpus import Cpu

__all__ = ["core_peak"]

_CALLS = 100
"""Of some ten microseconds each; the shortest counts, which no other process interrupted."""


@cache
def core_peak(library: Path, cpu: Cpu) -> float:
    """Floating-point operations a second that one core does at most, with the vectors the module was compiled for.

    Measured once for a module, in a millisecond.
    """
    probe = ffi().load_module(str(library)).get_function(PROBE, query_imports=True)
    factors, result = (aligned_empty(4 * n).view(np.float32) for n in (2, cpu.lanes))
    factors[:] = 0.5, 1.0  # the accumulators tend to 2: no infinity and no subnormal number slows them
    arguments = as_tensor(factors), as_tensor(result)
    shortest = float("inf")
    for _ in range(_CALLS):
        start = time.perf_counter()
        probe(*arguments)
        shortest = min(shortest, time.perf_counter() - start)
    return PROBE_FLOPS_A_LANE * cpu.lanes / shortest
