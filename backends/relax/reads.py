"""What a tensor expression reads: the extents with which it goes over the axes of its operands.

A formula such as `scale(c)` says nothing of how many elements the scale has. Where the sizes are symbolic, only a
comparison of what `c` runs over with the size of that axis tells whether the kernel stays inside its operand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tvm_ffi
from tvm import ir, te, tirx

Reach = tuple[tirx.Expr, tirx.Expr]
"""The extent of a kernel's axis, and the size of the operand's axis that it is an index of."""

_GUARD = "prim.if_then_else"
_LOAD = "te.tensor_load"


def reaches(outputs: Sequence[te.Tensor]) -> Iterator[Reach]:
    """Every pair that is not plainly the same; what stands behind a condition is left to the condition."""
    seen: list[te.Tensor] = []
    waiting = list(outputs)
    while waiting:
        tensor = waiting.pop()
        if any(tensor.same_as(s) for s in seen):
            continue
        seen.append(tensor)
        if isinstance(tensor.op, te.ComputeOp):
            waiting += list(tensor.op.input_tensors)
            yield from _of_stage(tensor.op)
        elif isinstance(tensor.op, te.ExternOp):
            waiting += list(tensor.op.inputs)


def _of_stage(stage: te.ComputeOp) -> Iterator[Reach]:
    extents = {axis.var: axis.dom.extent for axis in (*stage.axis, *stage.reduce_axis)}
    for body in stage.body:
        for load in _loads(body):
            source, *indices = load.args
            for index, size in zip(indices, source.shape, strict=True):
                extent = extents.get(index) if isinstance(index, tirx.Var) else None
                if extent is not None and not tvm_ffi.structural_equal(extent, size):
                    yield extent, size


def _loads(body: ir.Expr) -> list[ir.Call]:
    calls: list[ir.Call] = []
    tvm_ffi.structural_walk(body, (ir.Call, calls.append))
    guarded: list[ir.Call] = []
    for call in calls:
        if _is(call, _GUARD):
            for branch in call.args[1:]:
                tvm_ffi.structural_walk(branch, (ir.Call, guarded.append))
    return [c for c in calls if _is(c, _LOAD) and not any(c.same_as(g) for g in guarded)]


def _is(call: ir.Call, name: str) -> bool:
    return isinstance(call.op, ir.Op) and call.op.name == name
