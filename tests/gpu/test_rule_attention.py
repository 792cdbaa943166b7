"""Attention in shared memory: every mask, static and symbolic sizes, shared heads, and no matrix of scores."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.cuda.source import cuda_target
from backends.gpu import attention
from backends.gpu.attention import AttentionParts, sizes_of, tile_of
from backends.gpu.attention_tile import AttentionSizes, AttentionTile, best_attention_tile, estimate_attention
from backends.gpu.launch import scheduled
from backends.relax.kernel import decode, inline
from benchmarks.gpu_traffic import flat, traffic
from optimizer.gpus import GPUS
from tests.backends.running import oracle, parse
from tests.gpu.host_cuda import run_on_host
from tests.gpu.rules import agrees, distance, fused, launches


def model(
    heads: int, key_heads: int, size: int, mask: str = "", attributes: str = "", sizes: tuple[int, int] | None = None
) -> onnx.ModelProto:
    """Attention of packed heads, [B, S, H * D], for any B, S and T, or for one S and T."""
    rows, keys = ("s", "t") if sizes is None else sizes
    query, key = heads * size, key_heads * size
    declared = f", {mask} m" if mask else ""
    given_mask = ", m" if mask else ""
    return parse(
        f"""g (float[b,{rows},{query}] q, float[b,{keys},{key}] k, float[b,{keys},{key}] v{declared})
        => (float[b,{rows},{query}] y) {{
        y = Attention<q_num_heads = {heads}, kv_num_heads = {key_heads}{attributes}>(q, k, v{given_mask}) }}"""
    )


@pytest.mark.parametrize("sizes", [(128, 128), (64, 33), (37, 53), (5, 150), (65, 1)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_sizes(sizes: tuple[int, int], symbolic: bool) -> None:
    found = model(4, 2, 24, sizes=None if symbolic else sizes)
    agrees(found, "attention", attention.lower, {"b": 2, "s": sizes[0], "t": sizes[1]})


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.integers(1, 2), st.integers(1, 140), st.integers(1, 140), st.sampled_from(sorted(GPUS)))
def test_any_size_for_any_architecture(batch: int, rows: int, keys: int, gpu: str) -> None:
    agrees(model(2, 1, 16), "attention", attention.lower, {"b": batch, "s": rows, "t": keys}, GPUS[gpu])


@pytest.mark.parametrize("size", [1, 8, 20, 64, 80, 128])
def test_heads_of_any_size(size: int) -> None:
    agrees(model(2, 2, size), "attention", attention.lower, {"b": 1, "s": 40, "t": 70})


@pytest.mark.parametrize("sizes", [(150, 150), (70, 200), (200, 70)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_causal(sizes: tuple[int, int], symbolic: bool) -> None:
    found = model(2, 2, 16, attributes=", is_causal = 1", sizes=None if symbolic else sizes)
    agrees(found, "attention", attention.lower, {"b": 1, "s": sizes[0], "t": sizes[1]})


@pytest.mark.parametrize("mask", ["float[b,1,s,t]", "bool[s,t]", "float[1,1,1,t]"])
def test_masks(mask: str) -> None:
    agrees(model(2, 1, 16, mask), "attention", attention.lower, {"b": 2, "s": 70, "t": 90})


def test_heads_that_lie_apart() -> None:
    text = """g (float[2,4,s,16] q, float[2,2,t,16] k, float[2,2,t,24] v) => (float[2,4,s,24] y) {
        y = Attention(q, k, v) }"""
    agrees(parse(text), "attention", attention.lower, {"s": 33, "t": 47})


@pytest.mark.parametrize("gpu", ["opencl", "sm_80", "sm_90"])
@pytest.mark.parametrize("size", [192, 256, 257, 512])
def test_large_heads_come_in_pieces(gpu: str, size: int) -> None:
    found = model(2, 1, size, attributes=", is_causal = 1")
    agrees(found, "attention", attention.lower, {"b": 1, "s": 37, "t": 53}, GPUS[gpu])


@pytest.mark.parametrize("gpu", ["opencl", "sm_80"])
@pytest.mark.parametrize(("size", "value_size"), [(300, 20), (20, 300), (576, 512), (1, 260)])
def test_keys_and_values_of_different_sizes_come_in_pieces(gpu: str, size: int, value_size: int) -> None:
    text = f"""g (float[1,2,s,{size}] q, float[1,1,t,{size}] k, float[1,1,t,{value_size}] v)
        => (float[1,2,s,{value_size}] y) {{ y = Attention(q, k, v) }}"""
    agrees(parse(text), "attention", attention.lower, {"s": 21, "t": 35}, GPUS[gpu])


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("piece", [32, 64])
@pytest.mark.parametrize("size", [40, 64, 100])
def test_any_tile_in_pieces(monkeypatch: pytest.MonkeyPatch, piece: int, size: int, stays: bool) -> None:
    vector = 1 if size % 4 else 4
    tile = AttentionTile(4, 2, 1, size, size, piece, stays, vector)
    monkeypatch.setattr(attention, "tile_of", lambda parts, gpu: tile)
    agrees(model(2, 2, size, "bool[s,t]"), "attention", attention.lower, {"b": 2, "s": 19, "t": 50})


def test_a_device_with_little_shared_memory_has_room_for_large_heads() -> None:
    kernel = decode(fused(model(1, 1, 512)).one("attention"))
    assert kernel is not None
    parts = AttentionParts.of(inline(kernel))
    assert parts is not None
    tile = tile_of(parts, GPUS["opencl"])
    assert isinstance(tile, AttentionTile) and tile.shared_bytes <= 32 << 10
    assert all(not launch.scratch for launch in launches(kernel.function, attention.lower, GPUS["opencl"]))


@pytest.mark.without_device
@pytest.mark.parametrize(("dtype", "error"), [("float", 1e-5), ("float16", 1.2e-3)])
def test_large_heads_by_the_cuda_program(dtype: str, error: float) -> None:
    """Of float16, too: heads of 256 are too large for tensor cores."""
    text = f"""g ({dtype}[2,2,s,256] q, {dtype}[2,1,t,256] k, {dtype}[2,1,t,256] v) => ({dtype}[2,2,s,256] y) {{
        y = Attention<is_causal = 1>(q, k, v) }}"""
    kind, found = np.float32 if dtype == "float" else np.float16, parse(text)
    shapes = [(2, 2, 37, 256), (2, 1, 53, 256), (2, 1, 53, 256)]
    given = [np.random.default_rng(i).standard_normal(shape).astype(kind) for i, shape in enumerate(shapes)]
    (ours,), (theirs,) = run_on_host(found, given), oracle(found, given)
    assert distance(ours, theirs) <= error


def test_pieces_pass_memory_once() -> None:
    """As counted from the code: keys, values and the queries that come anew in every step stay in the cache."""
    gpu = GPUS["sm_80"]
    function = fused(model(2, 2, 512)).one("attention")
    flattened = flat(scheduled(function, launches(function, attention.lower, gpu)), cuda_target(gpu))
    for length in (64, 128):
        found = traffic(flattened, [{"registers": 144, "shared_bytes": 8192}], gpu, {"b": 1, "s": length, "t": length})
        assert not found.unknown
        assert found.memory_bytes == 4 * 2 * length * 512 * 4


def test_heads_too_large_for_registers_are_left_to_others() -> None:
    kernel = decode(fused(model(1, 1, 2048)).one("attention"))
    assert kernel is not None and attention.lower(inline(kernel), GPUS["opencl"]) is None


def test_what_is_no_attention_is_left_to_others() -> None:
    found = fused(parse("g (float[2,4,5] x) => (float[2,4,5] y) { y = Softmax(x) }"))
    kernel = decode(next(iter(found.functions.values())))
    assert kernel is not None and attention.lower(inline(kernel), GPUS["opencl"]) is None


@pytest.mark.parametrize("gpu", sorted(GPUS))
@pytest.mark.parametrize("size", [32, 64, 80, 128, 256, 512, 1024])
@pytest.mark.parametrize("rows", [1, 128, 2048, None])
def test_tiles_fit_the_architecture(gpu: str, size: int, rows: int | None) -> None:
    tile = best_attention_tile(AttentionSizes(12, rows, rows, size, size), GPUS[gpu])
    assert tile is not None and tile.fits(GPUS[gpu]) and tile.threads % GPUS[gpu].lanes == 0


def test_traffic_is_linear_in_length() -> None:
    gpu = GPUS["sm_80"]

    def traffic(length: int) -> float:
        sizes = AttentionSizes(12, length, length, 64, 64)
        tile = best_attention_tile(sizes, gpu)
        assert tile is not None
        return estimate_attention(sizes, tile, gpu).traffic_bytes

    assert traffic(8192) == 4 * traffic(2048)
    function = fused(model(8, 8, 32)).one("attention")
    assert all(not launch.scratch for launch in launches(function, attention.lower, gpu))


def test_later_keys_that_are_masked_count_as_half() -> None:
    kernel = decode(fused(model(2, 2, 16, attributes=", is_causal = 1")).one("attention"))
    assert kernel is not None
    parts = AttentionParts.of(inline(kernel))
    assert parts is not None
    sizes = sizes_of(parts)
    assert sizes is not None and sizes.share == 0.5
