"""Quantized graphs: products and convolutions of bytes, weights of 4 bits."""

import numpy as np
import onnx
import pytest

from optimizer import optimize
from tests.backends.running import Array, parse

RANDOM = np.random.default_rng(0)


def _weights(*shape: int) -> Array:
    return np.asarray(RANDOM.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)


def _products() -> onnx.ModelProto:
    return parse(
        "g (float[n,64] x) => (float[n,32] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        {"a": _weights(64, 128), "b": _weights(128, 32)},
    )


def _convolutions() -> onnx.ModelProto:
    return parse(
        """g (float[1,3,12,12] x) => (float[1,16,12,12] y)
        { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) d = Conv<pads=[1,1,1,1], group=16>(r, dw) y = Conv(d, p) }""",
        {"w": _weights(16, 3, 3, 3), "b": _weights(16), "dw": _weights(16, 1, 3, 3), "p": _weights(16, 16, 1, 1)},
    )


@pytest.mark.parametrize(
    ("graph", "shape", "calibrated"),
    [
        (_products(), (6, 64), False),
        (_products(), (6, 64), True),
        (_convolutions(), (1, 3, 12, 12), True),
    ],
)
def test_bytes(graph: onnx.ModelProto, shape: tuple[int, ...], calibrated: bool) -> None:
    samples = [{"x": RANDOM.normal(size=shape).astype(np.float32)} for _ in range(4)]
    compiled = optimize(
        graph,
        "opencl",
        example_inputs=samples[0],
        precision="int8",
        calibration=samples if calibrated else None,
        fallback="error",
        progress=False,
    )
    found = compiled.report.verification
    assert found.error is not None and found.loss is not None and found.loss < 0.1


def test_weights_of_4_bits() -> None:
    compiled = optimize(_products(), "opencl", precision="int4", fallback="error", progress=False)
    found = compiled.report.verification
    assert found.error is not None and found.loss is not None and 0 < found.loss < 0.3
    assert any(node.op_type == "DequantizeLinear" for node in compiled.graph.graph)
