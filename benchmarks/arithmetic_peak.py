"""The most products that this machine adds up: a loop of multiply-adds in registers alone, on every core."""

from __future__ import annotations

import time

import numpy as np
import tvm
from tvm import tirx

from backends.cpu.bfloat16 import imported
from backends.cpu.factors import add_product
from backends.cpu.operations import hidden
from backends.cpu.register_tile import RegisterTile, span, wide
from backends.cpu.schedule import llvm_target
from backends.relax.loops import BufferLoad, BufferStore, Expr, Stmt, allocate, i64, loop, parallel, sequence
from backends.relax.runtime import use_threads
from optimizer.target import Cpu, Target

__all__ = ["arithmetic_peak"]

SUMS = 20
"""Vectors that are added to in turn: enough that none waits for its own last sum."""
STEPS = 500_000
ROUNDS = 60
_FACTORS = {
    "int8": np.array([0x01020304, 0x01FF02FE], np.int32),
    "bfloat16": np.array([0x3F803F80, 0x3F003E80], np.int32),
    "float32": np.array([1.0, 0.25], np.float32),
}
"""What a lane multiplies, by type: four bytes, two bfloat16, one float32."""
_TOGETHER = {"int8": 4, "bfloat16": 2, "float32": 1}


def arithmetic_peak(dtype: str, threads: int) -> float:
    """Operations a second of so many threads together, a product and a sum counted as two; the best of many rounds.

    Args:
        dtype: Of the factors: "int8" (summed in int32), "bfloat16" or "float32" (both summed in float32).
        threads: How many.

    Raises:
        KeyError: Another type.
    """
    factors = _FACTORS[dtype]
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    with llvm_target(cpu):
        module = tvm.compile(tvm.IRModule({"main": _loops(cpu, dtype, threads)}), target=llvm_target(cpu))
    use_threads(threads)
    given = tvm.runtime.tensor(factors)
    sums = tvm.runtime.tensor(np.zeros((threads, cpu.lanes), factors.dtype if dtype != "bfloat16" else np.float32))
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        module["main"](given, sums)
        best = min(best, time.perf_counter() - start)
    return threads * STEPS * SUMS * cpu.lanes * _TOGETHER[dtype] * 2 / best


def _loops(cpu: Cpu, dtype: str, threads: int) -> tirx.PrimFunc:
    lanes, kind = cpu.lanes, str(_FACTORS[dtype].dtype)
    summed = "int32" if dtype == "int8" else "float32"
    factors = tirx.decl_buffer([2], kind, "factors")
    result = tirx.decl_buffer([threads, lanes], summed, "result")
    here = [span(0, lanes)]

    def task(thread: Expr) -> Stmt:
        tile = RegisterTile(SUMS, 1, lanes, summed, add_product(dtype, cpu))
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
