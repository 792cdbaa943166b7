"""Products with weights of 4 bits by blocks: every remainder, zero points, codebooks, quantized activations.

Where activations are of 16 bits, tensor cores multiply; the program runs by the stand-in for NVIDIA's driver.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.gpu import four_bits
from backends.gpu.forecast import forecast
from backends.gpu.tensor_tile import TensorTile
from backends.relax.kernel import decode, inline
from optimizer.gpus import GPUS, Gpu
from tests.backends.four_bits import quantized
from tests.backends.running import parse
from tests.gpu.host_cuda import run_on_host
from tests.gpu.rules import agrees, cuda_source, distance, fused, nvidia

TYPES = {"float16": (np.dtype(np.float16), 1.2e-3), "bfloat16": (np.dtype(ml_dtypes.bfloat16), 1e-2)}
"""And what is allowed: weights and results are rounded once each, to 11 bits or 8."""


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


def of_halves(
    rows: str, depth: int, columns: int, block: int, dtype: str = "float16", *, zero: bool = False
) -> tuple[onnx.ModelProto, np.ndarray]:
    """A product of activations of 16 bits, and the matrix."""
    weight = quantized(depth, columns, block, zero=zero, scale=dtype)
    node = weight.node.replace(", output_dtype=1", "")
    text = f"g ({dtype}[{rows},{depth}] x) => ({dtype}[{rows},{columns}] y) {{ {node} t = MatMul(x, d) y = Relu(t) }}"
    return parse(text, weight.initializers), weight.matrix


def on_tensor_cores(found: onnx.ModelProto, gpu: Gpu = GPUS["sm_80"]) -> bool:
    kernel = decode(fused(found).one("four_bits"))
    assert kernel is not None
    return isinstance(four_bits.tile_of(inline(kernel).stages[0], gpu), TensorTile)


@pytest.mark.without_device
@pytest.mark.parametrize(
    ("rows", "depth", "columns", "block"),
    [
        (16, 64, 64, 32),
        (37, 100, 70, 16),
        (130, 50, 33, 0),
        (21, 34, 5, -1),
        (64, 256, 192, 128),
        (1, 96, 64, 32),
        (21, 51, 64, 32),
    ],
)
@pytest.mark.parametrize("dtype", TYPES)
def test_activations_of_16_bits(dtype: str, rows: int, depth: int, columns: int, block: int) -> None:
    halves, allowed = TYPES[dtype]
    found, matrix = of_halves("s", depth, columns, block, dtype, zero=block == 16)
    assert on_tensor_cores(found)
    x = np.random.default_rng(rows).standard_normal((rows, depth)).astype(halves)
    (y,) = run_on_host(found, [x])
    assert distance(y, np.maximum(x.astype(np.float64) @ matrix, 0)) <= allowed


@pytest.mark.without_device
@pytest.mark.parametrize("case", ["float32", "few rows", "no tensor cores", "no asynchronous copies"])
def test_plain_cores_where_tensor_cores_cannot_be_used(case: str) -> None:
    gpu = GPUS["sm_80"]
    found = of_halves("15" if case == "few rows" else "16", 64, 64, 32)[0]
    if case == "float32":
        found = model("16", 64, 64, 32)
    if case == "no tensor cores":
        gpu = dataclasses.replace(gpu, tensor_cores=False)
    if case == "no asynchronous copies":
        gpu = dataclasses.replace(gpu, async_copies=False)
    assert not on_tensor_cores(found, gpu)


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize(("rows", "dtype", "block"), [("s", "float16", 32), ("128", "bfloat16", 0)])
def test_activations_of_16_bits_compile_to_tensor_core_instructions(
    rows: str, dtype: str, block: int, architecture: str
) -> None:
    gpu = GPUS[architecture]
    function = fused(of_halves(rows, 768, 768, block, dtype, zero=True)[0]).one("four_bits")
    compiled = nvidia().compile(cuda_source(function, four_bits.lower, gpu).source, architecture)
    (resources,) = compiled.kernels.values()
    assert resources.spilled_bytes == 0
    assert resources.shared_bytes <= 48 << 10
    kind = "f16" if dtype == "float16" else "bf16"
    assert f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32" in compiled.ptx


@pytest.mark.without_device
def test_the_forecast_counts_what_decoding_takes() -> None:
    kernel = decode(fused(of_halves("4096", 4096, 4096, 32)[0]).one("four_bits"))
    plain = decode(fused(model("4096", 4096, 4096, 32)).one("four_bits"))
    assert kernel is not None and plain is not None
    halves, floats = (forecast(inline(each), GPUS["sm_80"]) for each in (kernel, plain))
    assert halves.flops == floats.flops
    assert halves.flops / GPUS["sm_80"].flops["float16"] < halves.seconds < floats.seconds / 2
