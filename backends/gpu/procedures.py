"""Kernels with control flow of their own (scatter, top-k, scans, checks of indices) as launches.

Each loop that may run in parallel becomes a launch with a thread for each iteration; what stands between such loops
runs in a single thread. Buffers between launches lie in the device's memory, those of an iteration in the thread's.

A device cannot stop a run: where a procedure demands something, the number of the demand is left in `FAULTS`, which the
host reads behind the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import TensorLoad

from backends.gpu.device import FAULTS
from backends.gpu.launch import Ids, Launch, scheduled
from backends.gpu.points import element_bytes
from backends.relax.blocks import block_passes, outer_parallel
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    ForKind,
    IfThenElse,
    Stmt,
    Var,
    i64,
    known,
    sequence,
    simplify,
)
from backends.relax.values import Refused
from optimizer.gpus import Gpu

__all__ = ["DEMANDS", "lower_procedure"]

DEMANDS = "tersor.demands"
"""The attribute of a kernel that demands something: the texts of the errors."""

_BLOCK = 64
_MOST_OWN_BYTES = 4096
"""Of a buffer of a thread's own."""


def lower_procedure(function: tirx.PrimFunc, gpu: Gpu) -> tirx.PrimFunc:
    """A function that is no sequence of simple blocks, as launches.

    Raises:
        Refused: an iteration needs more memory of its own than a thread has.
    """
    body = _without_blocks(function).body
    demands: list[str] = []
    faults = tirx.decl_buffer([i64(1)], "int32", FAULTS)
    parts = list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]
    shared = [part.buffer for part in parts if isinstance(part, tirx.AllocBuffer)]
    work = [part for part in parts if not isinstance(part, tirx.AllocBuffer)]
    names = [part for part in work if isinstance(part, tirx.Bind)]
    launches: list[Launch] = []
    for part in work:
        if not isinstance(part, tirx.Bind) and not _is_nothing(part):
            told = _with_faults(part, faults, demands)
            launches.append(_launch(f"part{len(launches)}", told, names, gpu))
    if demands:
        shared.append(faults)
    if launches:
        launches[0] = Launch(
            launches[0].name, launches[0].grid, launches[0].block, launches[0].body, scratch=tuple(shared)
        )
    done = scheduled(function, launches)
    return done.with_attr(DEMANDS, demands) if demands else done


def _is_nothing(stmt: Stmt) -> bool:
    return isinstance(stmt, tirx.Evaluate) and known(stmt.value) is not None


def _launch(name: str, stmt: Stmt, names: Sequence[Stmt], gpu: Gpu) -> Launch:
    if not isinstance(stmt, tirx.For) or stmt.kind != ForKind.PARALLEL:
        single = _in_thread(stmt)
        return Launch(name, (i64(1), i64(1), i64(1)), (1, 1, 1), lambda _block, _thread: sequence([*names, single]))
    extent, threads = i64(stmt.extent), min(_BLOCK, gpu.threads)
    inner = _in_thread(stmt.body)

    def body(block: Ids, thread: Ids) -> Stmt:
        index = block[0] * threads + thread[0]
        own = tvm_ffi.structural_map(inner, [(Var, lambda v: index if v.same_as(stmt.loop_var) else v)])
        return sequence([*names, IfThenElse(index < extent, own, None)])

    blocks = simplify(tirx.floordiv(extent + (threads - 1), i64(threads)))
    return Launch(name, (blocks, i64(1), i64(1)), (threads, 1, 1), body)


def _in_thread(stmt: Stmt) -> Stmt:
    """What one thread runs: its loops in order, its buffers its own."""
    found: list[tirx.AllocBuffer] = []
    tvm_ffi.structural_walk(stmt, (tirx.AllocBuffer, found.append))
    moved = {node.buffer: _of_thread(node.buffer) for node in found}

    def allocation(node: tirx.AllocBuffer) -> Stmt:
        return tirx.AllocBuffer(moved[node.buffer])

    def load(node: TensorLoad) -> Expr:
        return BufferLoad(moved[node.source], list(node.indices)) if node.source in moved else node

    def store(node: BufferStore) -> Stmt:
        return BufferStore(moved[node.buffer], node.value, list(node.indices)) if node.buffer in moved else node

    def serial(node: tirx.For) -> Stmt:
        if node.kind != ForKind.PARALLEL:
            return node
        return tirx.For(node.loop_var, node.min, node.extent, ForKind.SERIAL, node.body)

    rules = [(tirx.AllocBuffer, allocation), (TensorLoad, load), (BufferStore, store), (tirx.For, serial)]
    return tvm_ffi.structural_map(stmt, rules)


def _of_thread(buffer: Var) -> Var:
    """The same buffer as a thread's own."""
    sizes = [known(size) for size in buffer.shape]
    total = element_bytes(str(buffer.dtype))
    for size in sizes:
        if size is None:
            raise Refused("a procedure whose iterations need memory of a symbolic size")
        total *= size
    if total > _MOST_OWN_BYTES:
        raise Refused(f"a procedure whose iterations need {total} bytes each")
    return tirx.decl_buffer(list(buffer.shape), str(buffer.dtype), str(buffer.name), scope="local")


def _with_faults(stmt: Stmt, faults: Var, demands: list[str]) -> Stmt:
    """Demands leave their number."""

    def noted(node: tirx.AssertStmt) -> Stmt:
        demands.append("".join(str(part.value) for part in node.message_parts))
        number = tirx.const(len(demands), "int32")
        return IfThenElse(tirx.Not(node.condition), BufferStore(faults, number, [i64(0)]), None)

    return tvm_ffi.structural_map(stmt, [(tirx.AssertStmt, noted)])


def _without_blocks(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function as plain loops; the independent outer loop of each block may run in parallel."""
    if isinstance(function.body, s_tir.SBlockRealize) and function.body.block.name_hint == "root":
        function = outer_parallel(function)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    return tvm.transform.Sequential(block_passes())(module)["main"]
