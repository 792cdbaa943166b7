"""Run a small model where a checker of races and bounds is the only device: `python -m tests.gpu.checked_run NAME`."""

from __future__ import annotations

import sys

import numpy as np
import pyopencl
from onnx import ModelProto

from tests.backends.running import Array, oracle, parse
from tests.gpu.running import compiled

RANDOM = np.random.default_rng(0)
RACE = "__kernel void f(__global float* a) { a[0] = a[get_global_id(0)]; }"


def _normal(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def cases() -> dict[str, tuple[ModelProto, list[Array]]]:
    """Models of one kind of kernel each, with odd sizes."""
    indices = np.array([4, -1, 0], np.int64)
    gather = "g (float[5,6] x, int64[n] i) => (float[n,6] y) { y = Gather(x, i) }"
    return {
        "softmax": (parse("g (float[n,s] x) => (float[n,s] y) { y = Softmax(x) }"), [_normal(3, 77)]),
        "layer norm": (
            parse(
                "g (float[n,s,40] x) => (float[n,s,40] y) { y = LayerNormalization<axis=-1>(x, w, b) }",
                {"w": _normal(40), "b": _normal(40)},
            ),
            [_normal(2, 3, 40)],
        ),
        "chain": (parse("g (float[n,13] x) => (float[n,13] y) { a = Exp(x) y = Mul(a, x) }"), [_normal(7, 13)]),
        "product": (
            parse(
                "g (float[n,19] x) => (float[n,23] y) { m = MatMul(x, w) y = Gelu(m) }",
                {"w": _normal(19, 23)},
            ),
            [_normal(5, 19)],
        ),
        "convolution": (
            parse(
                "g (float[1,4,n,n] x) => (float[1,6,n,n] y) { c = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(c) }",
                {"w": _normal(6, 4, 3, 3), "b": _normal(6)},
            ),
            [_normal(1, 4, 7, 7)],
        ),
        "attention": (
            parse(
                "g (float[1,n,24] q, float[1,n,24] k, float[1,n,24] v) => (float[1,n,24] y) "
                "{ y = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v) }"
            ),
            [_normal(1, 9, 24) for _ in range(3)],
        ),
        "gather": (parse(gather), [_normal(5, 6), indices]),
        "top k": (
            parse("g (float[n,17] x) => (float[n,4] v, int64[n,4] i) { v, i = TopK(x, k) }", {"k": np.array([4])}),
            [_normal(5, 17)],
        ),
    }


def main(name: str) -> int:
    """Run a case and compare; "race" runs a kernel that has one."""
    if name == "race":
        device = pyopencl.get_platforms()[0].get_devices()[0]
        context = pyopencl.Context([device])
        buffer = pyopencl.Buffer(context, pyopencl.mem_flags.READ_WRITE, 64)
        queue = pyopencl.CommandQueue(context)
        pyopencl.Program(context, RACE).build().f(queue, (16,), (16,), buffer)
        queue.finish()
        return 0
    model, inputs = cases()[name]
    for ours, theirs in zip(compiled(model).run(inputs, 1), oracle(model, inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
