"""Quantized graphs: products and convolutions of bytes, weights of 4 bits."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer import optimize
from tests.backends.running import Array, parse
from tests.gpu.host_cuda import host_gpu

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


@pytest.mark.without_device
@pytest.mark.parametrize("target", ["cuda:sm_80", "opencl"])
def test_attention_between_bytes_is_bfloat16_where_tensor_cores_multiply_it(target: str) -> None:
    model = parse(
        """g (float[1,s,64] x) => (float[1,s,32] y) {
        q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c)
        t = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) y = MatMul(t, d) }""",
        {"a": _weights(64, 32), "b": _weights(64, 32), "c": _weights(64, 32), "d": _weights(32, 32)},
    )
    samples = [{"x": RANDOM.normal(size=(1, 40, 64)).astype(np.float32)} for _ in range(2)]
    with host_gpu():
        compiled = optimize(
            model,
            target,
            example_inputs=samples[0],
            precision="int8",
            calibration=samples,
            fallback="error",
            progress=False,
            verify="final" if target == "cuda:sm_80" else "off",
        )
        wanted = ir.DataType.BFLOAT16 if target == "cuda:sm_80" else ir.DataType.FLOAT
        kinds = {node.op_type: node.inputs[0] for node in compiled.graph.graph}
        assert kinds["Attention"] is not None and kinds["Attention"].dtype == wanted
        product = kinds["MatMul"]
        assert product is not None and product.dtype == ir.DataType.FLOAT
        maker = product.producer()
        assert maker is not None and maker.op_type == "DequantizeLinear"
        assert compiled.graph.graph.outputs[0].dtype == ir.DataType.FLOAT
        if target == "cuda:sm_80":
            found = compiled.report.verification
            assert found.loss is not None and found.loss < 0.1
