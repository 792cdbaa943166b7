"""Weights of 4 bits times activations of int8: exact sums in int32, for every kind of scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.cpu.four_bits_bytes import tile_shape
from backends.cpu.tiles import Tiles
from optimizer.executable import Executable
from optimizer.target import Target
from tests.backends.bfloat16 import TARGETS, instructions, usable
from tests.backends.four_bits import Quantized, distance, normal_floats, quantized
from tests.backends.running import compiled, parse

Array = npt.NDArray[Any]
RNG = np.random.default_rng(29)
STEP = np.float32(1 / 32)


def activation(kind: str, depth: int, block: int) -> tuple[str, dict[str, Array]]:
    """Nodes that quantize `x` to `f`, and their initializers."""
    if kind == "tensor":
        nodes = "q = QuantizeLinear<output_dtype=3>(x, xs) f = DequantizeLinear(q, xs)"
        return nodes, {"xs": np.array(STEP)}
    numbers = {"tiny": np.array(1e-9, np.float32), "top": np.array(127, np.float32)}
    scale = "a = Abs({0}) r = ReduceMax<keepdims=0>(a, last) t = Max(r, tiny) xs = Div(t, top)"
    both = "q = QuantizeLinear<{0}, output_dtype=3>(x, xs) f = DequantizeLinear<{0}>(q, xs)"
    if kind == "rows":
        return f"{scale.format('x')} {both.format('axis=0')}", {**numbers, "last": np.array([1])}
    nodes = f"h = Reshape(x, cut) {scale.format('h')} {both.format(f'axis=1, block_size={block}')}"
    return nodes, {**numbers, "last": np.array([2]), "cut": np.array([-1, depth // block, block])}


def rounded(x: Array, kind: str, block: int) -> Array:
    """What the nodes make of `x`, in float64."""
    if kind == "tensor":
        scale: Array = np.array(STEP)
    elif kind == "rows":
        scale = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-9)) / np.float32(127)
    else:
        scale = np.repeat(np.abs(x.reshape(len(x), -1, block)).max(2) / np.float32(127), block, 1)
    return np.clip(np.rint(x / scale), -128, 127).astype(np.float64) * scale


def product(
    weight: Quantized, rows: int, kind: str = "rows", block: int = 32, declared: str = "", target: str = "cpu"
) -> Executable:
    """Compile, run, and demand float32's accuracy, of the rounded activation."""
    depth, columns = weight.matrix.shape
    nodes, weights = activation(kind, depth, block)
    node = "y = Gemm<transB=1>(f, d)" if weight.transposed else "y = MatMul(f, d)"
    m = declared or str(rows)
    text = f"g (float[{m},{depth}] x) => (float[{m},{columns}] y) {{ {nodes} {weight.node} {node} }}"
    executable = compiled(parse(text, {**weight.initializers, **weights}), target)
    x = RNG.standard_normal((rows, depth)).astype(np.float32)
    (y,) = executable.run([x], 2)
    left = rounded(x, kind, block)
    size = np.linalg.norm(np.abs(left) @ np.abs(weight.matrix))
    assert np.linalg.norm(y - left @ weight.matrix) <= 1e-6 * size
    return executable


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 9),
    columns=st.integers(1, 150),
    block=st.sampled_from([-1, 0, 16, 32, 64]),
    kind=st.sampled_from(["tensor", "rows", "blocks"]),
    left_block=st.sampled_from([16, 32, 64]),
    signed=st.booleans(),
    zero=st.booleans(),
    transposed=st.booleans(),
    target=st.sampled_from(TARGETS),
)
def test_any_size_agrees(
    rows: int,
    groups: int,
    columns: int,
    block: int,
    kind: str,
    left_block: int,
    signed: bool,
    zero: bool,
    transposed: bool,
    target: str,
) -> None:
    weight = quantized(64 * groups, columns, block, signed=signed, zero=zero, transposed=transposed)
    product(weight, rows, kind, left_block, target=usable(target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("depth", [1, 3, 5, 12, 101])
@pytest.mark.parametrize("block", [0, 16])
def test_depths_that_fill_no_word(depth: int, block: int, target: str) -> None:
    product(quantized(depth, 40, block, zero=True), 5, target=usable(target))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 191, 193, 390])
def test_symbolic_rows_use_every_remainder(rows: int) -> None:
    product(quantized(72, 70, 32, signed=False, zero=True), rows, declared="m")


@pytest.mark.parametrize("declared", ["", "m"])
@pytest.mark.parametrize("rows", [8, 45])
def test_weights_beyond_the_second_level_cache(rows: int, declared: str) -> None:
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    weight = quantized(2048, 2 * cpu.l2_bytes // 2048 + 100, 128)
    assert Tiles(cpu).streamed(weight.matrix.size // 8, None)
    product(weight, rows, "blocks", 128, declared)


def test_the_largest_products_of_a_long_row_do_not_overflow() -> None:
    weight = quantized(4096, 16, 0, signed=False)
    weight.initializers["w"][:] = 15
    scale = weight.initializers["s"].astype(np.float64)
    nodes, weights = activation("rows", 4096, 0)
    text = f"g (float[2,4096] x) => (float[2,16] y) {{ {nodes} {weight.node} y = MatMul(f, d) }}"
    x = np.stack([np.full(4096, 3, np.float32), np.full(4096, -3, np.float32)])
    (y,) = compiled(parse(text, {**weight.initializers, **weights})).run([x], 2)
    np.testing.assert_allclose(y, np.array([[3.0], [-3.0]]) * 4096 * 15 * scale, rtol=1e-6)


def test_tails_are_done_on_the_totals() -> None:
    weight = quantized(96, 100)
    nodes, weights = activation("tensor", 96, 0)
    bias, residual = (RNG.standard_normal(shape).astype(np.float32) for shape in ((100,), (6, 100)))
    text = f"""g (float[6,96] x, float[6,100] r) => (float[6,100] y)
        {{ {nodes} {weight.node} t = Gemm(f, d, c) u = Relu(t) y = Add(u, r) }}"""
    executable = compiled(parse(text, {**weight.initializers, **weights, "c": bias}))
    x = RNG.standard_normal((6, 96)).astype(np.float32)
    wanted = np.maximum(rounded(x, "tensor", 0) @ weight.matrix + bias, 0) + residual
    assert distance(executable.run([x, residual], 2)[0], wanted) < 2e-6


def uses_bytes(executable: Executable, folder: Path) -> bool:
    """Whether four bytes are multiplied at once; the test is skipped where the processor cannot."""
    cpu = Target.parse("cpu").cpu
    if cpu is None or not cpu.vnni:
        pytest.skip("this machine lacks AVX512_VNNI")
    return "vpdpbusd" in instructions(executable, folder)


def test_bytes_are_multiplied_by_the_processor_that_can(tmp_path: Path) -> None:
    assert uses_bytes(product(quantized(64, 40), 5), tmp_path)


class TestWhatIsComputedInFloat:
    """One test for each condition: the result is right, and no bytes are multiplied."""

    def in_float(self, nodes: str, weights: dict[str, Array], left: Array, x: Array, folder: Path) -> None:
        weight = quantized(64, 40, 32)
        text = f"g (float[3,64] x) => (float[3,40] y) {{ {nodes} {weight.node} y = MatMul(f, d) }}"
        executable = compiled(parse(text, {**weight.initializers, **weights}))
        assert distance(executable.run([x], 2)[0], left.astype(np.float64) @ weight.matrix) < 2e-6
        assert not uses_bytes(executable, folder)

    def test_an_activation_that_is_not_quantized(self, tmp_path: Path) -> None:
        x = RNG.standard_normal((3, 64)).astype(np.float32)
        self.in_float("f = Relu(x)", {}, np.maximum(x, 0), x, tmp_path)

    def test_a_zero_point(self, tmp_path: Path) -> None:
        x = RNG.standard_normal((3, 64)).astype(np.float32)
        nodes = "q = QuantizeLinear(x, xs, xz) f = DequantizeLinear(q, xs, xz)"
        weights: dict[str, Array] = {"xs": np.array(STEP), "xz": np.array(5, np.int8)}
        left = (np.clip(np.rint(x / STEP) + 5, -128, 127) - 5) * STEP
        self.in_float(nodes, weights, left, x, tmp_path)

    def test_bytes_without_a_sign(self, tmp_path: Path) -> None:
        x = np.abs(RNG.standard_normal((3, 64))).astype(np.float32)
        nodes = "q = QuantizeLinear(x, xs) f = DequantizeLinear(q, xs)"
        self.in_float(nodes, {"xs": np.array(STEP)}, np.clip(np.rint(x / STEP), 0, 255) * STEP, x, tmp_path)

    def test_a_scale_for_each_column(self, tmp_path: Path) -> None:
        x, scale = RNG.standard_normal((3, 64)).astype(np.float32), RNG.uniform(0.03, 0.06, 64).astype(np.float32)
        nodes = "q = QuantizeLinear<axis=1, output_dtype=3>(x, xs) f = DequantizeLinear<axis=1>(q, xs)"
        self.in_float(nodes, {"xs": scale}, np.clip(np.rint(x / scale), -128, 127) * scale, x, tmp_path)

    def test_blocks_that_cut_words(self, tmp_path: Path) -> None:
        x = RNG.standard_normal((3, 64)).astype(np.float32)
        nodes, weights = activation("blocks", 64, 4)
        self.in_float(nodes, weights, rounded(x, "blocks", 4), x, tmp_path)

    def test_blocks_that_cut_those_of_the_weight(self, tmp_path: Path) -> None:
        weight = quantized(96, 40, 32)
        nodes, weights = activation("blocks", 96, 48)
        text = f"g (float[3,96] x) => (float[3,40] y) {{ {nodes} {weight.node} y = MatMul(f, d) }}"
        executable = compiled(parse(text, {**weight.initializers, **weights}))
        x = RNG.standard_normal((3, 96)).astype(np.float32)
        assert distance(executable.run([x], 2)[0], rounded(x, "blocks", 48) @ weight.matrix) < 2e-6
        assert not uses_bytes(executable, tmp_path)

    def test_numbers_of_a_codebook(self, tmp_path: Path) -> None:
        assert not uses_bytes(product(normal_floats(64, 40), 3), tmp_path)


@pytest.mark.parametrize(
    ("registers", "panel", "rows", "shape"),
    [
        (32, 4, None, (6, 2)),
        (32, 4, 5, (5, 2)),
        (32, 4, 2, (2, 4)),
        (32, 4, 1, (1, 4)),
        (32, 1, None, (13, 1)),
        (16, 4, None, (2, 4)),
        (16, 4, 1, (1, 4)),
    ],
)
def test_tiles_hold_their_sums_and_totals(registers: int, panel: int, rows: int | None, shape: tuple[int, int]) -> None:
    assert tile_shape(registers, panel, rows) == shape
