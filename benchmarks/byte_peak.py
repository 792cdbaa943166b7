"""The most products of bytes that this machine does: a loop of multiply-adds in registers alone, on every core."""

from __future__ import annotations

import time

import numpy as np
import tvm
from tvm import tirx

from backends.cpu.bfloat16 import imported
from backends.cpu.factors import add_product
from backends.cpu.operations import hidden
from backends.cpu.quads import QUAD
from backends.cpu.register_tile import RegisterTile, span, wide
from backends.cpu.schedule import llvm_target
from backends.relax.loops import BufferLoad, BufferStore, Expr, Stmt, allocate, i64, loop, parallel, sequence
from backends.relax.runtime import use_threads
from optimizer.target import Cpu, Target

__all__ = ["byte_peak"]

SUMS = 12
"""Vectors that are added to in turn: enough that none waits for its own last sum."""
STEPS = 500_000
ROUNDS = 60


def byte_peak(threads: int) -> float:
    """Operations a second of so many threads together, a product and a sum counted as two."""
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    with llvm_target(cpu):
        module = tvm.compile(tvm.IRModule({"main": _loops(cpu, threads)}), target=llvm_target(cpu))
    use_threads(threads)
    factors = tvm.runtime.tensor(np.array([0x01020304, 0x01FF02FE], np.int32))
    sums = tvm.runtime.tensor(np.zeros((threads, cpu.lanes), np.int32))
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        module["main"](factors, sums)
        best = min(best, time.perf_counter() - start)
    return threads * STEPS * SUMS * cpu.lanes * QUAD * 2 / best


def _loops(cpu: Cpu, threads: int) -> tirx.PrimFunc:
    lanes = cpu.lanes
    factors, result = (tirx.decl_buffer(s, "int32", n) for s, n in (([2], "factors"), ([threads, lanes], "result")))
    here = [span(0, lanes)]

    def task(thread: Expr) -> Stmt:
        tile = RegisterTile(SUMS, 1, lanes, "int32", add_product("int8", cpu))
        a, b = (wide(BufferLoad(factors, [i64(i)]), lanes) for i in (0, 1))

        def step(_: Expr) -> Stmt:
            return sequence([tile.multiply(row, 0, a, b) for row in range(SUMS)])

        total = BufferLoad(tile.buffers[0], here)
        for buffer in tile.buffers[1:]:
            total = total + BufferLoad(buffer, here)
        stored = BufferStore(result, total, [thread, *here])
        return allocate(tile.buffers, sequence([*tile.zero(), loop(hidden(i64(STEPS)), step, name="step"), stored]))

    function = tirx.PrimFunc([factors, result], imported(sequence([parallel(threads, task)])))
    return function.with_attr("global_symbol", "main").with_attr("tirx.noalias", True)
