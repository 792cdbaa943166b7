"""All weights of a plan, packed, in one buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from backends.relax.packing import TRANSFORMS, aligned_empty, carried, element_type, offsets
from backends.relax.plan import Plan
from optimizer.errors import CompileError

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["pack"]


def pack(plan: Plan, graph: ir.Graph) -> np.ndarray[Any, Any]:
    """Lay all weights out in one buffer; their offsets are entered in the plan."""
    sizes = [int(np.prod(w.shape, dtype=np.int64)) * element_type(w.dtype).itemsize for w in plan.weights]
    starts, plan.weight_bytes = offsets(sizes)
    buffer = aligned_empty(plan.weight_bytes)
    for start, size, end in zip(starts, sizes, [*starts, plan.weight_bytes][1:], strict=True):
        buffer[start + size : end] = 0  # what was in this memory before is nobody's business
    for spec, start, size in zip(plan.weights, starts, sizes, strict=True):
        spec.offset = start
        tensor = graph.initializers[spec.source].const_value
        if tensor is None:
            raise CompileError(f"the initializer {spec.source!r} has no data")
        packed = TRANSFORMS[spec.transform](carried(tensor.numpy()), **spec.options)
        view = buffer[start : start + size].view(element_type(spec.dtype)).reshape(spec.shape)
        np.copyto(view, packed, casting="same_kind")
    return buffer
