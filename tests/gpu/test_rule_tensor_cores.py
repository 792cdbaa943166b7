"""Products on tensor cores: fragments are proved by emulated instructions, the instructions by NVIDIA's compiler."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from backends.gpu import conv2d, matmul
from backends.gpu.blocked import best_of
from backends.gpu.tensor_tile import TensorTile, best_tensor_tile
from backends.gpu.tile_model import Sizes
from optimizer.gpus import GPUS
from tests.backends.running import conv_relu, parse
from tests.gpu.rules import Rule, computed, cuda_source, distance, fused, launches, nvidia

RNG = np.random.default_rng(11)
GPU = GPUS["sm_80"]
TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def normal(dtype: str, *shape: int) -> npt.NDArray[np.generic]:
    return RNG.standard_normal(shape).astype(TYPES[dtype])


def dense(dtype: str, rows: str, depth: int, columns: int, packed: bool = True) -> onnx.ModelProto:
    text = f"""g ({dtype}[{rows},{depth}] a{"" if packed else f", {dtype}[{depth},{columns}] b"})
        => ({dtype}[{rows},{columns}] y) {{ t = MatMul(a, b) u = Add(t, c) y = Relu(u) }}"""
    model = parse(text)
    weights = {"c": normal(dtype, columns)} | ({"b": normal(dtype, depth, columns)} if packed else {})
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def wide(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return array.astype(np.float64)


def unpacked(panels: npt.NDArray[np.generic], columns: int) -> npt.NDArray[np.float64]:
    """[P, K, W] as [K, N]."""
    count, depth, width = panels.shape
    return wide(panels).transpose(1, 0, 2).reshape(depth, count * width)[:, :columns]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("rows", "depth", "columns", "packed"),
    [
        *[(64, 64, 64, True), (37, 50, 70, True), (150, 24, 130, True), (33, 100, 72, False), (1, 16, 8, False)],
        # Rows that begin at odd places are brought element by element: of the left factor, of the right one, of both.
        *[(37, 49, 64, True), (70, 147, 130, True), (33, 100, 71, False), (5, 33, 7, False), (64, 197, 197, False)],
    ],
)
def test_products_agree_with_emulated_instructions(
    dtype: str, rows: int, depth: int, columns: int, packed: bool
) -> None:
    function = fused(dense(dtype, "s", depth, columns, packed)).one("matmul")
    made = launches(function, matmul.lower, GPU)
    shapes = [tuple(int(d) if not str(d).isidentifier() else rows for d in p.shape) for p in function.params]
    given = [normal(dtype, *shape) for shape in shapes]
    results = computed(function, made, list(given), {"s": rows})
    by_rank = {array.ndim: array for array in given}
    right = unpacked(by_rank[3], columns) if packed else wide(next(g for g in given if g.shape == (depth, columns)))
    left = wide(next(g for g in given if g.shape == (rows, depth)))
    wanted = np.maximum(left @ right + wide(by_rank[1]), 0)
    (found,) = (r for r, g in zip(results, given, strict=True) if r.tobytes() != g.tobytes())
    assert found.shape == (rows, columns)
    assert distance(wide(found), wanted) <= (2e-3 if dtype == "float16" else 1e-2)  # the result is rounded once


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rows", ["s", "128", "37"])
def test_products_compile_to_tensor_core_instructions(dtype: str, architecture: str, rows: str) -> None:
    function = fused(dense(dtype, rows, 768, 768)).one("matmul")
    compiled = nvidia().compile(cuda_source(function, matmul.lower, GPUS[architecture]).source, architecture)
    (resources,) = compiled.kernels.values()
    assert resources.spilled_bytes == 0
    kind = "f16" if dtype == "float16" else "bf16"
    assert f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32" in compiled.ptx
    assert "ldmatrix.sync.aligned.m8n8.x4.trans" in compiled.ptx
    assert "cp.async.cg.shared.global" in compiled.ptx


def convolution(
    dtype: str, shape: str, filters: tuple[int, ...], group: int = 1, stride: int = 1, pad: int = 1
) -> onnx.ModelProto:
    model = parse(conv_relu(dtype, shape, stride, [pad] * 4, 1, group))
    for name, array in {"w": normal(dtype, *filters), "b": normal(dtype, filters[0])}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


@pytest.mark.parametrize(("channels", "group"), [(8, 1), (8, 2), (3, 1), (1, 1), (5, 1), (6, 2)])
def test_convolutions_agree_with_emulated_instructions(channels: int, group: int) -> None:
    """Against the same rule on plain cores, which `test_rule_conv2d.py` holds against TVM's own code."""
    function = fused(convolution("float16", f"2,{channels},9,11", (20, channels // group, 3, 3), group)).one("conv2d")
    given = [normal("float16", *(int(d) for d in p.shape)) for p in function.params]
    tensor, plain = (launches(function, conv2d.lower, GPUS[name]) for name in ("sm_80", "opencl"))
    assert int(tensor[0].grid[0]) != int(plain[0].grid[0])
    results = [computed(function, made, list(given), {}) for made in (tensor, plain)]
    for ours, theirs in zip(*results, strict=True):
        assert distance(wide(ours), wide(theirs)) <= 1e-3


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_convolutions_compile_to_tensor_core_instructions(architecture: str) -> None:
    function = fused(convolution("float16", "1,64,56,56", (64, 64, 3, 3))).one("conv2d")
    compiled = nvidia().compile(cuda_source(function, conv2d.lower, GPUS[architecture]).source, architecture)
    (resources,) = compiled.kernels.values()
    assert resources.spilled_bytes == 0
    assert "mma.sync.aligned.m16n8k16" in compiled.ptx


ONE_BY_ONE: dict[str, tuple[onnx.ModelProto, str, Rule]] = {
    "image of three channels": (
        convolution("float16", "1,3,224,224", (64, 3, 7, 7), stride=2, pad=3),
        "conv2d",
        conv2d.lower,
    ),
    "patches of any image": (
        convolution("bfloat16", "n,3,h,w", (768, 3, 16, 16), stride=16, pad=0),
        "conv2d",
        conv2d.lower,
    ),
    "three channels of a group": (convolution("float16", "1,12,56,56", (64, 3, 3, 3), 4), "conv2d", conv2d.lower),
    "odd depth": (dense("float16", "128", 147, 64), "matmul", matmul.lower),
    "odd columns": (dense("bfloat16", "197", 64, 197, packed=False), "matmul", matmul.lower),
    "both odd, any rows": (dense("float16", "s", 197, 197, packed=False), "matmul", matmul.lower),
}


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("case", ONE_BY_ONE)
def test_elements_that_come_one_by_one_are_multiplied_by_tensor_cores(case: str, architecture: str) -> None:
    model, kind, rule = ONE_BY_ONE[case]
    gpu = GPUS[architecture]
    compiled = nvidia().compile(cuda_source(fused(model).one(kind), rule, gpu).source, architecture)
    (resources,) = compiled.kernels.values()
    assert "mma.sync.aligned.m16n8k16" in compiled.ptx
    assert resources.spilled_bytes == 0
    assert resources.shared_bytes <= gpu.shared_bytes


@pytest.mark.without_device
def test_one_by_one_where_plain_cores_would_be_faster() -> None:
    """Both factors of a product that tensor cores would have to wait for: their registers hold fewer tiles."""
    sizes = Sizes(1, 16384, 16384, 512, 2, "float16")
    slow = dataclasses.replace(GPU, flops={**GPU.flops, "float16": GPU.flops["float32"] / 2})
    assert isinstance(best_of(sizes, slow), TensorTile)
    assert isinstance(best_of(dataclasses.replace(sizes, singly=(True, True)), GPU), TensorTile)
    assert not isinstance(best_of(dataclasses.replace(sizes, singly=(True, True)), slow), TensorTile)


@pytest.mark.without_device
@pytest.mark.parametrize("case", ["float32", "no tensor cores", "rows side by side"])
def test_plain_cores_where_tensor_cores_cannot_be_used(case: str) -> None:
    gpu = dataclasses.replace(GPU, tensor_cores=case != "no tensor cores")
    sizes = Sizes(1, 64, 64, 64, 4, "float32") if case == "float32" else Sizes(1, 64, 64, 64, 2, "float16")
    assert not isinstance(best_of(sizes, gpu, 2 if case == "rows side by side" else 1), TensorTile)
    assert isinstance(best_of(Sizes(1, 64, 64, 64, 2, "float16"), GPU), TensorTile)


@pytest.mark.without_device
@pytest.mark.parametrize("gpu", ["sm_80", "sm_86", "sm_89", "sm_90"])
@pytest.mark.parametrize("rows", [1, 128, 4096, None])
def test_tiles_fit_the_architecture(gpu: str, rows: int | None) -> None:
    assert best_tensor_tile(Sizes(1, rows, 768, 768, 2, "float16"), GPUS[gpu]).fits(GPUS[gpu])
