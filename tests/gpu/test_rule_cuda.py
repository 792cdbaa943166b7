"""NVIDIA's compiler takes every kernel, and finds room for it: no spills, within the architecture's shared memory."""

from __future__ import annotations

import shutil
from importlib import metadata

import numpy as np
import onnx
import pytest

from backends.cuda.compiler import Compiler, Nvcc, Nvrtc, compiler, resources_of
from backends.gpu import attention, conv2d, matmul
from optimizer.errors import CompileError, TargetError
from optimizer.gpus import GPUS
from tests.backends.running import conv_relu, parse
from tests.gpu.rules import Rule, cuda_source, fused, nvidia
from tests.gpu.test_rule_attention import model as attend

pytestmark = pytest.mark.without_device
RNG = np.random.default_rng(5)
ARCHITECTURES = [name for name in GPUS if name.startswith("sm_")]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def dense(rows: str, depth: int, columns: int, tail: str) -> onnx.ModelProto:
    text = (
        f"g (float[{rows},{depth}] a) => (float[{rows},{columns}] y) {{ t = MatMul(a, b) u = Add(t, c) y = {tail}(u) }}"
    )
    return parse(text, {"b": normal(depth, columns), "c": normal(columns)})


def convolution(shape: str, filters: tuple[int, ...], stride: int, pad: int, group: int = 1) -> onnx.ModelProto:
    text = conv_relu("float", shape, stride, [pad] * 4, 1, group)
    return parse(text, {"w": normal(*filters), "b": normal(filters[0])})


CASES: dict[str, tuple[onnx.ModelProto, str, Rule]] = {
    "dense 128x768x3072": (dense("128", 768, 3072, "Gelu"), "matmul", matmul.lower),
    "dense of any rows": (dense("s", 768, 768, "Relu"), "matmul", matmul.lower),
    "dense of odd sizes": (dense("37", 53, 71, "Tanh"), "matmul", matmul.lower),
    "dense of one row": (dense("1", 768, 2304, "Sigmoid"), "matmul", matmul.lower),
    "product of two inputs": (
        parse("g (float[2,3,s,t] q, float[2,3,t,u] k) => (float[2,3,s,u] y) { y = MatMul(q, k) }"),
        "matmul",
        matmul.lower,
    ),
    "convolution 7x7": (convolution("1,3,224,224", (64, 3, 7, 7), 2, 3), "conv2d", conv2d.lower),
    "convolution 3x3": (convolution("1,64,56,56", (64, 64, 3, 3), 1, 1), "conv2d", conv2d.lower),
    "grouped, of any size": (convolution("n,64,h,w", (64, 16, 3, 3), 2, 1, 4), "conv2d", conv2d.lower),
    "attention": (attend(12, 12, 64, sizes=(128, 128)), "attention", attention.lower),
    "causal, of any length": (attend(12, 12, 64, attributes=", is_causal = 1"), "attention", attention.lower),
    "shared heads of 128": (attend(8, 2, 128, "bool[s,t]"), "attention", attention.lower),
    "heads of 80": (attend(8, 8, 80), "attention", attention.lower),
    "heads of 256": (attend(8, 2, 256, "bool[s,t]"), "attention", attention.lower),
    "heads of 257": (attend(2, 2, 257, attributes=", is_causal = 1"), "attention", attention.lower),
    "a head of 512": (attend(1, 1, 512, sizes=(4096, 4096)), "attention", attention.lower),
    "one query": (attend(12, 12, 64, sizes=(1, 1024)), "attention", attention.lower),
}


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", CASES)
def test_no_spills(case: str, architecture: str) -> None:
    model, kind, rule = CASES[case]
    gpu = GPUS[architecture]
    compiled = nvidia().compile(cuda_source(fused(model).one(kind), rule, gpu).source, architecture)
    (resources,) = compiled.kernels.values()
    assert resources.spilled_bytes == 0
    assert resources.shared_bytes <= gpu.shared_bytes
    assert resources.registers <= gpu.registers


@pytest.mark.parametrize("architecture", ["sm_86", "sm_89"])
def test_other_architectures_compile(architecture: str) -> None:
    model, kind, rule = CASES["dense 128x768x3072"]
    code = cuda_source(fused(model).one(kind), rule, GPUS[architecture])
    (resources,) = nvidia().compile(code.source, architecture).kernels.values()
    assert resources.spilled_bytes == 0
    assert resources.shared_bytes == code.starts["kernel"][0].shared_bytes


@pytest.mark.parametrize("case", ["dense 128x768x3072", "convolution 3x3", "attention"])
def test_memory_is_read_and_written_in_vectors(case: str) -> None:
    model, kind, rule = CASES[case]
    ptx = nvidia().compile(cuda_source(fused(model).one(kind), rule, GPUS["sm_80"]).source, "sm_80").ptx
    assert "ld.global.nc.v4.f32" in ptx or "ld.global.v4.f32" in ptx or "ld.global.nc.v4.b32" in ptx
    assert "ld.global.nc.f32" not in ptx.split("bar.sync")[1]  # before the first barrier: the first tiles


BROKEN = 'extern "C" __global__ void broken(float* x) { x[0] = nothing; }'
SMALL = """extern "C" __global__ void small(float* x) {
    __shared__ float s[64];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = s[63 - threadIdx.x];
}"""


def both() -> list[Compiler]:
    """Those that are here."""
    return [found for found in (Nvcc.found(), Nvrtc.found()) if found is not None]


def test_each_compiler_says_what_is_wrong_and_what_a_kernel_takes() -> None:
    nvidia()
    for found in both():
        with pytest.raises(CompileError, match=rf"{found.name}: .*nothing"):
            found.compile(BROKEN, "sm_80")
        compiled = found.compile(SMALL, "sm_80")
        assert compiled.kernels["small"].shared_bytes == 256
        assert compiled.cubin.startswith(b"\x7fELF")
        assert ".target sm_80" in compiled.ptx


def test_a_log_that_says_too_little() -> None:
    with pytest.raises(CompileError, match="does not say what k takes"):
        resources_of("ptxas info    : Compiling entry function 'k' for 'sm_80'\nptxas info    : nothing")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(TargetError, match=r"nvcc on the PATH or NVRTC: pip install tersor\[cuda\]"):
        compiler()
