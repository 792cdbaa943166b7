"""Products and convolutions of bytes by the blocked product: sums are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from backends.gpu import conv2d, matmul
from optimizer.gpus import GPUS
from tests.backends.running import parse
from tests.gpu.rules import PlainTiles, agrees, cuda_source, fused, nvidia

RNG = np.random.default_rng(2)
SCALES: dict[str, npt.NDArray[Any]] = {
    "one": np.array(0.5, np.float32),
    "zero": np.array(0, np.uint8),
    "other": np.array(0.25, np.float32),
}


def product(rows: str, depth: int, columns: int) -> onnx.ModelProto:
    weights = {"w": RNG.integers(-128, 128, (depth, columns)).astype(np.int8), **SCALES}
    text = f"""g (uint8[{rows},{depth}] x) => (float[{rows},{columns}] y) {{
        a = DequantizeLinear(x, one, zero) b = DequantizeLinear(w, other) y = MatMul(a, b) }}"""
    return parse(text, weights)


def convolution(channels: int = 8, out: int = 20, group: int = 1) -> onnx.ModelProto:
    filters = RNG.integers(-128, 128, (out, channels // group, 3, 3)).astype(np.int8)
    text = f"""g (uint8[1,{channels},9,9] x) => (float[1,{out},9,9] y) {{
        a = DequantizeLinear(x, one, zero) b = DequantizeLinear(w, other)
        y = Conv<pads=[1,1,1,1], group={group}>(a, b) }}"""
    return parse(text, {"w": filters, **SCALES})


@pytest.mark.parametrize("gpu", sorted(GPUS))
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 16, 8), (37, 50, 70), (64, 64, 64)])
def test_products(rows: int, depth: int, columns: int, gpu: str) -> None:
    agrees(product("s", depth, columns), "matmul", matmul.lower, {"s": rows}, GPUS[gpu])


@pytest.mark.parametrize("gpu", sorted(GPUS))
def test_convolutions(gpu: str) -> None:
    agrees(convolution(), "conv2d", conv2d.lower, gpu=GPUS[gpu])


class Words(PlainTiles):
    """Four bytes of a column side by side, as tensor cores want them."""

    def together(self, dtype: str) -> int:
        return 4 if dtype in ("uint8", "int8") else 1


@pytest.mark.parametrize("gpu", ["opencl", "sm_80"])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 16, 8), (37, 52, 70), (150, 100, 130), (64, 50, 64)])
def test_products_of_words(rows: int, depth: int, columns: int, gpu: str) -> None:
    """By emulated tensor cores where there are some; of a depth that is no multiple of four, one by one."""
    agrees(product("s", depth, columns), "matmul", matmul.lower, {"s": rows}, GPUS[gpu], Words())


@pytest.mark.parametrize("gpu", ["opencl", "sm_80"])
@pytest.mark.parametrize("channels", [(8, 20, 1), (6, 20, 1), (8, 16, 2), (12, 12, 4)])
def test_convolutions_of_words(channels: tuple[int, int, int], gpu: str) -> None:
    """Channels are rounded up to four where there is one group; three channels of a group are brought one by one."""
    agrees(convolution(*channels), "conv2d", conv2d.lower, gpu=GPUS[gpu], tiles=Words())


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_convolutions_of_words_compile_to_tensor_core_instructions(architecture: str) -> None:
    function = fused(convolution(64, 64, 1), Words()).one("conv2d")
    compiled = nvidia().compile(cuda_source(function, conv2d.lower, GPUS[architecture]).source, architecture)
    (resources,) = compiled.kernels.values()
    assert resources.spilled_bytes == 0
    assert "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32" in compiled.ptx


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("rows", ["s", "128"])
def test_products_of_words_compile_to_tensor_core_instructions(rows: str, architecture: str) -> None:
    function = fused(product(rows, 768, 768), Words()).one("matmul")
    compiled = nvidia().compile(cuda_source(function, matmul.lower, GPUS[architecture]).source, architecture)
    (resources,) = compiled.kernels.values()
    assert resources.spilled_bytes == 0
    assert "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32" in compiled.ptx


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_spills(architecture: str) -> None:
    nvidia()
    for function, rule in (
        (fused(product("s", 768, 768)).one("matmul"), matmul.lower),
        (fused(convolution()).one("conv2d"), conv2d.lower),
    ):
        code = cuda_source(function, rule, GPUS[architecture])
        (resources,) = nvidia().compile(code.source, architecture).kernels.values()
        assert resources.spilled_bytes == 0


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_a_few_long_steps_are_not_written_out(architecture: str) -> None:
    """Nine steps of a large tile: written out one behind the other, they would need more registers than there are."""
    filters = RNG.integers(-128, 128, (64, 64, 3, 3)).astype(np.int8)
    text = """g (uint8[8,64,56,56] x) => (float[8,64,56,56] y) {
        a = DequantizeLinear(x, one, zero) b = DequantizeLinear(w, other) y = Conv<pads=[1,1,1,1]>(a, b) }"""
    function = fused(parse(text, {"w": filters, **SCALES}), Words()).one("conv2d")
    compiled = nvidia().compile(cuda_source(function, conv2d.lower, GPUS[architecture]).source, architecture)
    (resources,) = compiled.kernels.values()
    assert resources.spilled_bytes == 0
    assert resources.registers <= 168
