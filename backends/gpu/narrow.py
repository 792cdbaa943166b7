"""Indices of kernels whose sizes are known, as TVM can prove that they fit in 32 bits.

`tirx.transform.NarrowDataType` makes an index 32 bits wide where the bounds of all its parts fit. It knows those of
threads, loops and constants, and nothing of what a register holds: one index that was given a name in a register keeps
everything that is computed with it at 64 bits. So, where all sizes are numbers, names give way to what they stand for;
NVIDIA's compiler computes once what is written twice. Kernels with symbolic sizes have no bounds: they keep the names,
and 64 bits.
"""

from __future__ import annotations

import tvm_ffi
from tvm import tirx
from tvm.ir import TensorLoad

from backends.gpu.threads import NAMED
from backends.relax.loops import known

__all__ = ["without_names"]


def without_names(function: tirx.PrimFunc, body: tirx.Stmt) -> tirx.Stmt:
    """The body of a kernel without the registers of `backends.gpu.threads.named`, if all its sizes are known.

    Args:
        function: the kernel; only its parameters are looked at.
        body: what it does.
    """
    if not all(_known(parameter) for parameter in function.params):
        return body
    values: dict[tirx.Var, tirx.Expr] = {}

    def load(node: TensorLoad) -> tirx.Expr:
        return values.get(node.source, node)

    def store(node: tirx.BufferStore) -> tirx.Stmt:
        if not _is_name(node.buffer):
            return node
        values[node.buffer] = node.value  # stored once, and before it is read
        return tirx.Evaluate(0)

    def allocated(node: tirx.AllocBuffer) -> tirx.Stmt:
        return tirx.Evaluate(0) if _is_name(node.buffer) else node

    return tvm_ffi.structural_map(body, [(TensorLoad, load), (tirx.BufferStore, store), (tirx.AllocBuffer, allocated)])


def _is_name(buffer: tirx.Var) -> bool:
    return str(buffer.name) == NAMED and str(buffer.scope()) == "local" and str(buffer.dtype) == "int64"


def _known(parameter: tirx.Var) -> bool:
    return isinstance(parameter.ty, tirx.BufferType) and all(known(dim) is not None for dim in parameter.shape)
