"""A kernel that does nothing but multiply-adds in registers: what the processor can do at most, asked of it itself.

Every compiled module has it. A profile runs it for a millisecond, and so knows the peak of this machine, at the clock
that it has now and with the vectors that the module was compiled for.
"""

from __future__ import annotations

from tvm import tirx

from backends.cpu.register_tile import RegisterTile, span, wide
from backends.relax.loops import BufferLoad, BufferStore, Expr, Stmt, allocate, i64, loop, sequence
from backends.relax.plan import PROBE, PROBE_ROWS, PROBE_STEPS
from optimizer.target import Cpu

__all__ = ["probe"]


def probe(cpu: Cpu) -> tirx.PrimFunc:
    """`probe(factors, result)`: `factors` [2] float32, `result` [lanes] float32, the sum of all accumulators."""
    lanes = cpu.lanes
    factors, result = tirx.decl_buffer([2], "float32", "factors"), tirx.decl_buffer([lanes], "float32", "result")
    tile = RegisterTile(PROBE_ROWS, 1, lanes, "float32")
    here = [span(0, lanes)]

    def step(_: Expr) -> Stmt:
        scale, offset = (wide(BufferLoad(factors, [i64(i)]), lanes) for i in (0, 1))
        return sequence([BufferStore(b, BufferLoad(b, here) * scale + offset, here) for b in tile.buffers])

    total = BufferLoad(tile.buffers[0], here)
    for buffer in tile.buffers[1:]:
        total = total + BufferLoad(buffer, here)
    body = allocate(
        tile.buffers, sequence([*tile.zero(), loop(PROBE_STEPS, step, name="step"), BufferStore(result, total, here)])
    )
    function = tirx.PrimFunc([factors, result], body)
    for name, value in (("global_symbol", PROBE), ("tirx.is_scheduled", True), ("tirx.noalias", True)):
        function = function.with_attr(name, value)
    return function
