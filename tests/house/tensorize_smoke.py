"""One `Schedule.tensorize`, compiled and run: what kills the process when TVM's FFI is not the pinned one.

Run as `python -m tests.house.tensorize_smoke`; prints the sum that it computed.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import s_tir, te
from tvm.script import tirx as T

LANES = 16


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
def add_lanes(a: T.handle, b: T.handle) -> None:
    A = T.match_buffer(a, (16,), "float32", offset_factor=1)
    B = T.match_buffer(b, (16,), "float32", offset_factor=1)
    with T.sblock("root"):
        T.reads(A[0:16])
        T.writes(B[0:16])
        for i in T.serial(0, 16):
            with T.sblock("add"):
                v = T.axis.spatial(16, i)
                B[v] = A[v] + T.float32(1)


def main() -> None:
    """Tensorize `x + 1` over 64 elements."""
    source = te.placeholder((4 * LANES,), "float32", name="x")
    result = te.compute(source.shape, lambda i: source[i] + tvm.tirx.const(1, "float32"), name="add")
    s_tir.TensorIntrin.register("add_lanes", add_lanes, add_lanes)
    schedule = s_tir.Schedule(te.create_prim_func([source, result]))
    (loop,) = schedule.get_loops(schedule.get_sblock("add"))
    _, inner = schedule.split(loop, [None, LANES])
    schedule.tensorize(inner, "add_lanes")
    function = tvm.compile(schedule.mod, target="llvm")["main"]
    x = tvm.runtime.tensor(np.arange(4 * LANES, dtype=np.float32))
    y = tvm.runtime.tensor(np.zeros(4 * LANES, np.float32))
    function(x, y)
    print(int(y.numpy().sum()))


if __name__ == "__main__":
    main()
