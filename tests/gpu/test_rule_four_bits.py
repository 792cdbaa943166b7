"""Products with weights of 4 bits by blocks: every remainder, zero points, codebooks, quantized activations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.gpu import four_bits
from backends.relax.kernel import decode, inline
from optimizer.gpus import GPUS
from tests.backends.four_bits import quantized
from tests.backends.running import parse
from tests.gpu.rules import agrees, cuda_source, fused, nvidia


def model(
    rows: str, depth: int, columns: int, block: int, *, zero: bool = False, transposed: bool = False
) -> onnx.ModelProto:
    weight = quantized(depth, columns, block, zero=zero, transposed=transposed)
    node = "t = Gemm<transB=1>(x, d)" if weight.transposed else "t = MatMul(x, d)"
    text = f"g (float[{rows},{depth}] x) => (float[{rows},{columns}] y) {{ {weight.node} {node} y = Relu(t) }}"
    return parse(text, weight.initializers)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 80),
    depth=st.integers(1, 200),
    columns=st.integers(1, 150),
    block=st.sampled_from([-1, 0, 16, 32, 64]),
    zero=st.booleans(),
    transposed=st.booleans(),
    gpu=st.sampled_from(sorted(GPUS)),
)
def test_any_size_agrees(
    rows: int, depth: int, columns: int, block: int, zero: bool, transposed: bool, gpu: str
) -> None:
    found = model(str(rows), depth, columns, block, zero=zero, transposed=transposed)
    agrees(found, "four_bits", four_bits.lower, gpu=GPUS[gpu])


@pytest.mark.parametrize("rows", [1, 64, 65])
def test_symbolic_rows(rows: int) -> None:
    agrees(model("s", 96, 70, 32), "four_bits", four_bits.lower, {"s": rows})


def test_quantized_activations() -> None:
    weight = quantized(64, 40, 32)
    text = f"""g (int8[9,64] x) => (float[9,40] y) {{ {weight.node}
        f = DequantizeLinear(x, scale) y = MatMul(f, d) }}"""
    found = parse(text, {**weight.initializers, "scale": np.array(0.1, np.float32)})
    agrees(found, "four_bits", four_bits.lower)


def test_what_is_no_such_product_is_left_to_others() -> None:
    found = fused(parse("g (float[2,4,5] x) => (float[2,4,5] y) { y = Softmax(x) }"))
    kernel = decode(next(iter(found.functions.values())))
    assert kernel is not None and four_bits.lower(inline(kernel), GPUS["opencl"]) is None


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("rows", "zero"), [("s", False), ("128", True), ("1", False)])
def test_no_spills(rows: str, zero: bool, architecture: str) -> None:
    function = fused(model(rows, 768, 768, 32, zero=zero)).one("four_bits")
    code = cuda_source(function, four_bits.lower, GPUS[architecture])
    (resources,) = nvidia().compile(code.source, architecture).kernels.values()
    assert resources.spilled_bytes == 0
