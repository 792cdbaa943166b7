"""Matrix products in shared memory: every remainder, batches, symbolic sizes, tails, tiles of all architectures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.gpu import matmul
from backends.gpu.tile_model import Sizes, best_tile, row_group
from backends.relax.kernel import decode, inline
from optimizer.gpus import GPUS
from tests.backends.running import parse
from tests.gpu.rules import PlainTiles, agrees, fused

RNG = np.random.default_rng(7)
OPENCL = GPUS["opencl"]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 140),
    k=st.integers(1, 90),
    n=st.integers(1, 150),
    packed=st.booleans(),
    gpu=st.sampled_from(sorted(GPUS)),
)
def test_any_size_agrees(m: int, k: int, n: int, packed: bool, gpu: str) -> None:
    tail = "{ t = MatMul(a, b) u = Add(t, c) y = Relu(u) }"
    text = f"g (float[{m},{k}] a{'' if packed else f', float[{k},{n}] b'}) => (float[{m},{n}] y) {tail}"
    weights = {"c": normal(n)} | ({"b": normal(k, n)} if packed else {})
    agrees(parse(text, weights), "matmul", matmul.lower, gpu=GPUS[gpu])


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("gpu", ["opencl", "sm_80"])
def test_symbolic_rows(rows: int, gpu: str) -> None:
    model = parse("g (float[s,24] a) => (float[s,50] y) { t = MatMul(a, b) y = Tanh(t) }", {"b": normal(24, 50)})
    agrees(model, "matmul", matmul.lower, {"s": rows}, GPUS[gpu])


@pytest.mark.parametrize("size", [1, 7, 8, 33, 66])
def test_symbolic_depth_and_columns(size: int) -> None:
    model = parse("g (float[2,3,s,t] q, float[2,3,t,u] k) => (float[2,3,s,u] y) { y = MatMul(q, k) }")
    agrees(model, "matmul", matmul.lower, {"s": 5, "t": size, "u": size + 1})


def test_batches_broadcast_on_either_side() -> None:
    model = parse("g (float[4,1,5,6] a, float[3,6,7] b) => (float[4,3,5,7] y) { y = MatMul(a, b) }")
    agrees(model, "matmul", matmul.lower)


def test_a_batch_of_constants() -> None:
    model = parse("g (float[3,9,12] a) => (float[3,9,70] y) { y = MatMul(a, b) }", {"b": normal(3, 12, 70)})
    agrees(model, "matmul", matmul.lower)


def test_residual_and_gelu_in_the_tail() -> None:
    text = "g (float[40,32] a, float[40,68] r) => (float[40,68] y) { t = MatMul(a, b) u = Gelu(t) y = Add(u, r) }"
    agrees(parse(text, {"b": normal(32, 68)}), "matmul", matmul.lower)


@pytest.mark.parametrize("width", [32, 48, 128])
def test_panels_of_other_widths(width: int) -> None:
    model = parse("g (float[20,16] a) => (float[20,130] y) { y = MatMul(a, b) }", {"b": normal(16, 130)})
    agrees(model, "matmul", matmul.lower, tiles=PlainTiles(width))


def test_groups_of_rows_where_the_cache_is_small() -> None:
    small = dataclasses.replace(OPENCL, l2_bytes=1 << 18)
    sizes = Sizes(1, 300, 400, 130)
    tile = best_tile(sizes, small)
    assert (row_group(sizes, tile.rows, small), -(-300 // tile.rows)) == (2, 5)  # the last group has a row too many
    model = parse("g (float[300,130] a) => (float[300,400] y) { y = MatMul(a, b) }", {"b": normal(130, 400)})
    agrees(model, "matmul", matmul.lower, gpu=small)


def test_double_precision_sums_in_double_precision() -> None:
    model = parse("g (double[9,12] a, double[12,20] b) => (double[9,20] y) { y = MatMul(a, b) }")
    agrees(model, "matmul", matmul.lower)


def test_what_is_no_product_is_left_to_others() -> None:
    model = parse("g (float[2,4,5] x) => (float[2,4,5] y) { y = Softmax(x) }")
    (function,) = fused(model).functions.values()
    kernel = decode(function)
    assert kernel is not None and matmul.lower(inline(kernel), OPENCL) is None


def test_panels_of_rows_side_by_side() -> None:
    class Pairs(PlainTiles):
        def together(self, dtype: str) -> int:
            return 2

    model = parse("g (float[9,12] a) => (float[9,70] y) { y = MatMul(a, b) }", {"b": normal(12, 70)})
    agrees(model, "matmul", matmul.lower, tiles=Pairs())


@pytest.mark.parametrize("gpu", sorted(GPUS))
@pytest.mark.parametrize("rows", [1, 49, 128, 4096, None])
def test_tiles_fit_the_architecture(gpu: str, rows: int | None) -> None:
    tile = best_tile(Sizes(1, rows, 768, 768), GPUS[gpu])
    assert tile.fits(GPUS[gpu])
    assert tile.threads % GPUS[gpu].lanes == 0
