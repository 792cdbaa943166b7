"""Parallel loops of procedures that are too short to be worth starting the threads for.

A procedure (scatter, top-k, a scan) says what could run in parallel, whatever its sizes are. Where all extents are
known, their product bounds the work: waking threads for less than that takes longer than the work, and much longer
where other programs hold the cores.
"""

from __future__ import annotations

import math

import tvm_ffi
from tvm import tirx
from tvm.tirx import ForKind

from backends.relax.loops import Stmt, known

__all__ = ["PARALLEL_STEPS", "without_small_parallel_loops"]

PARALLEL_STEPS = 4096
"""Rounds of the innermost loops below which one thread runs them all; each is a few operations."""


def without_small_parallel_loops(stmt: Stmt) -> Stmt:
    """The statement with those parallel loops made serial that have few rounds, all nested loops counted."""

    def serial(node: tirx.For) -> Stmt:
        if node.kind != ForKind.PARALLEL or _most_steps(node) >= PARALLEL_STEPS:
            return node
        return tirx.For(node.loop_var, node.min, node.extent, ForKind.SERIAL, node.body)

    return tvm_ffi.structural_map(stmt, [(tirx.For, serial)])


def _most_steps(stmt: Stmt) -> float:
    """At least as many rounds as a statement's innermost loops take; infinite where only the run knows."""
    loops: list[tirx.For] = []
    tvm_ffi.structural_walk(stmt, (tirx.For, loops.append))
    endless: list[tirx.While] = []
    tvm_ffi.structural_walk(stmt, (tirx.While, endless.append))
    extents = [known(loop.extent) for loop in loops]
    if endless or any(extent is None for extent in extents):
        return math.inf
    return math.prod(max(extent or 0, 1) for extent in extents)
