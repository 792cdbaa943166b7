"""How wide indices are: 32 bits where all sizes are known and small enough, else 64."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from tvm import tirx

from backends.gpu import conv2d, depthwise, generic, matmul
from backends.gpu.launch import Launch, scheduled
from backends.gpu.threads import named, wide_index
from backends.relax.values import Refused
from optimizer.errors import ExecutionError
from optimizer.gpus import GPUS
from tests.backends.running import conv_relu, parse
from tests.gpu.rules import Rule, cuda_source, fused
from tests.gpu.running import compiled

pytestmark = pytest.mark.without_device
SM_80 = GPUS["sm_80"]


def product(rows: str) -> onnx.ModelProto:
    weight = np.ones((64, 48), np.float32)
    return parse(f"g (float[{rows},64] x) => (float[{rows},48] y) {{ y = MatMul(x, w) }}", {"w": weight})


def convolution(shape: str, group: int) -> onnx.ModelProto:
    filters = np.ones((64, 64 // group, 3, 3), np.float32)
    return parse(conv_relu("float", shape, 2, [1] * 4, 1, group), {"w": filters, "b": np.ones(64, np.float32)})


CASES: dict[str, tuple[Any, str, Rule]] = {
    "product": (lambda size: product(size), "matmul", matmul.lower),
    "convolution": (lambda size: convolution(f"{size},64,28,30", 1), "conv2d", conv2d.lower),
    "depthwise": (lambda size: convolution(f"{size},64,28,30", 64), "depthwise", depthwise.lower),
}


def text(case: str, size: str) -> str:
    model, kind, rule = CASES[case]
    return cuda_source(fused(model(size)).one(kind), rule, SM_80).source.rpartition('extern "C"')[2]


@pytest.mark.parametrize("case", CASES)
def test_known_sizes_take_32_bits(case: str) -> None:
    assert "int64_t" not in text(case, "7")


@pytest.mark.parametrize("case", CASES)
def test_symbolic_sizes_take_64_bits(case: str) -> None:
    assert "int64_t" in text(case, "n")


def test_known_sizes_that_are_too_large_take_64_bits() -> None:
    assert "int64_t" in text("product", str(1 << 26))


@pytest.mark.parametrize(("count", "wide"), [((1 << 31) - 256, False), ((1 << 31) + 256, True)])
def test_the_border_is_that_of_the_type(count: int, wide: bool) -> None:
    function = fused(parse(f"g (uint8[{count}] x) => (uint8[{count}] y) {{ y = Not(x) }}".replace("Not", "BitwiseNot")))
    (kernel,) = function.functions.values()
    assert ("int64_t" in cuda_source(kernel, generic.lower, SM_80).source.rpartition('extern "C"')[2]) is wide


def kernel_of(shape: list[Any]) -> tuple[tirx.PrimFunc, Launch]:
    """A kernel that stores to a place with a name."""
    source, target = tirx.decl_buffer(shape, "float32", "x"), tirx.decl_buffer(shape, "float32", "y")

    def body(block: Any, thread: Any) -> tirx.Stmt:
        places = [block[0] * 32 + wide_index(thread[0]) // 2]
        return named(places, lambda own: tirx.BufferStore(target, tirx.BufferLoad(source, own), own))

    one = tirx.const(1, "int64")
    function = tirx.PrimFunc([source, target], tirx.Evaluate(0))
    return function, Launch("copy", (tirx.const(4, "int64"), one, one), (32, 1, 1), body)


def test_names_are_kept_where_a_size_is_symbolic() -> None:
    for shape, kept in (([128], False), ([tirx.Var("n", "int64")], True)):
        function, launch = kernel_of(shape)
        assert ("y[at] = x[at]" in str(scheduled(function, [launch]))) is kept


@pytest.mark.parametrize("count", [1 << 31, (1 << 31) - 1])
def test_a_grid_that_no_device_counts_is_refused(count: int) -> None:
    function, launch = kernel_of([128])
    large = dataclasses.replace(launch, grid=(tirx.const(count, "int64"), *launch.grid[1:]))
    if count < 1 << 31:
        scheduled(function, [large])
    else:
        with pytest.raises(Refused, match="it would start 2,147,483,648 blocks of threads"):
            scheduled(function, [large])


def test_more_blocks_than_a_device_counts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    executable = compiled(parse("g (float[n,16] x) => (float[n,16] y) { y = Neg(x) }"))
    monkeypatch.setattr("backends.gpu.runtime._MOST_BLOCKS", 3)
    with pytest.raises(ExecutionError, match="would start 16 blocks of threads, a device counts 3"):
        executable.run([np.zeros((1000, 16), np.float32)], 1)
