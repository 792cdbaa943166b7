"""Attention on tensor cores: fragments are proved by emulated instructions, the instructions by NVIDIA's compiler."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from tvm import tirx

from backends.cuda.source import cuda_code, cuda_target
from backends.gpu import attention
from backends.gpu.attention import AttentionParts, tile_of
from backends.gpu.attention_tile import AttentionSizes, AttentionTile
from backends.gpu.forecast import forecast
from backends.gpu.launch import scheduled
from backends.gpu.tensor_attention_tile import (
    TensorAttentionTile,
    best_tensor_attention_tile,
    estimate_tensor_attention,
)
from backends.relax.kernel import decode, inline
from benchmarks.gpu_traffic import flat, traffic
from optimizer.gpus import GPUS
from tests.backends.running import oracle, parse
from tests.gpu.host_cuda import run_on_host
from tests.gpu.rules import arguments, computed, distance, fused, launches, nvidia

RNG = np.random.default_rng(5)
NVIDIA = ["sm_80", "sm_86", "sm_89", "sm_90"]
PLAIN = dataclasses.replace(GPUS["sm_80"], tensor_cores=False)
ALLOWED = {"bfloat16": 1e-2, "float16": 1.2e-3}
"""The weights and the result are rounded once each, to 11 bits or 8."""


def model(
    dtype: str,
    size: int,
    heads: tuple[int, int] = (4, 2),
    extra: str = "",
    mask: str = "",
    sizes: tuple[int, int] | None = None,
) -> onnx.ModelProto:
    """Attention of packed heads, [B, S, H * D], for any B, S and T, or for one S and T."""
    rows, keys = ("s", "t") if sizes is None else sizes
    query, key = heads[0] * size, heads[1] * size
    declared, given = (f", {mask} m", ", m") if mask else ("", "")
    return parse(
        f"""g ({dtype}[b,{rows},{query}] q, {dtype}[b,{keys},{key}] k, {dtype}[b,{keys},{key}] v{declared})
        => ({dtype}[b,{rows},{query}] y) {{
        y = Attention<q_num_heads = {heads[0]}, kv_num_heads = {heads[1]}{extra}>(q, k, v{given}) }}"""
    )


def tile(function: tirx.PrimFunc, gpu: str) -> AttentionTile | TensorAttentionTile | None:
    kernel = decode(function)
    assert kernel is not None
    parts = AttentionParts.of(inline(kernel))
    assert parts is not None
    return tile_of(parts, GPUS[gpu])


def agrees(found: onnx.ModelProto, sizes: dict[str, int], gpu: str = "sm_80") -> None:
    """The kernel on emulated tensor cores, beside the rule for plain cores, which is held against TVM's own code."""
    made = fused(found)
    function, all_sizes = made.one("attention"), made.sizes(sizes)
    assert isinstance(tile(function, gpu), TensorAttentionTile) and isinstance(tile(function, "opencl"), AttentionTile)
    given = arguments(function, all_sizes)
    ours, theirs = (
        computed(function, launches(function, attention.lower, GPUS[name]), given, all_sizes)
        for name in (gpu, "opencl")
    )
    dtype = next(name for name in ALLOWED if f"{name}[" in onnx.printer.to_text(found))
    for one, other in zip(ours, theirs, strict=True):
        assert np.isfinite(other.astype(np.float32)).all()
        assert distance(one, other) <= ALLOWED[dtype]


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize("sizes", [(128, 128), (64, 33), (37, 53), (5, 150), (65, 1), (1, 70)])
def test_sizes(dtype: str, sizes: tuple[int, int]) -> None:
    agrees(model(dtype, 32), {"b": 2, "s": sizes[0], "t": sizes[1]})


@pytest.mark.parametrize("size", [2, 20, 1, 15, 33])
@pytest.mark.parametrize("dtype", ALLOWED)
def test_heads_of_any_size(size: int, dtype: str) -> None:
    agrees(model(dtype, size, (2, 2)), {"b": 1, "s": 40, "t": 70})


def test_values_of_odd_size() -> None:
    text = """g (float16[2,4,s,16] q, float16[2,4,t,16] k, float16[2,4,t,5] v) => (float16[2,4,s,5] y) {
        y = Attention(q, k, v) }"""
    agrees(parse(text), {"s": 40, "t": 70})


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("sizes", [(150, 150), (70, 200), (200, 70)])
def test_causal(sizes: tuple[int, int], symbolic: bool) -> None:
    found = model("float16", 16, (2, 2), ", is_causal = 1", sizes=None if symbolic else sizes)
    agrees(found, {"b": 1, "s": sizes[0], "t": sizes[1]})


@pytest.mark.parametrize("mask", ["float16[b,1,s,t]", "bool[s,t]", "float16[1,1,1,t]"])
def test_masks(mask: str) -> None:
    agrees(model("float16", 16, (2, 1), mask=mask), {"b": 2, "s": 70, "t": 90})


def test_a_score_is_capped() -> None:
    agrees(model("float16", 16, extra=", softcap = 2.0"), {"b": 1, "s": 20, "t": 30})


def test_heads_that_lie_apart() -> None:
    text = """g (bfloat16[2,4,s,16] q, bfloat16[2,2,t,16] k, bfloat16[2,2,t,24] v) => (bfloat16[2,4,s,24] y) {
        y = Attention(q, k, v) }"""
    agrees(parse(text), {"s": 33, "t": 47})


def whole(size: int, sizes: tuple[int, int], gpu: str = "sm_80", extra: str = "", *, static: bool = False) -> None:
    """A graph against ONNX Runtime."""
    found = model("float16", size, (4, 2), extra, sizes=sizes if static else None)
    given = [
        RNG.standard_normal((2, count, heads * size)).astype(np.float16)
        for count, heads in zip((sizes[0], sizes[1], sizes[1]), (4, 2, 2), strict=True)
    ]
    function = fused(found).one("attention")
    assert isinstance(tile(function, gpu), TensorAttentionTile)
    (ours,), (theirs,) = run_on_host(found, given, gpu), oracle(found, given)
    assert distance(ours, theirs) <= ALLOWED["float16"]


@pytest.mark.without_device
@pytest.mark.parametrize(("size", "extra"), [(32, ""), (64, ", is_causal = 1"), (80, ""), (128, ", is_causal = 1")])
def test_whole_graphs_by_the_drivers_calls(size: int, extra: str) -> None:
    whole(size, (37, 53), extra=extra)


@pytest.mark.without_device
@pytest.mark.parametrize("gpu", NVIDIA)
def test_any_length_for_any_architecture(gpu: str) -> None:
    whole(16, (141, 70), gpu)


@pytest.mark.without_device
def test_one_query_has_one_warp() -> None:
    own = tile(fused(model("float16", 64, sizes=(1, 300))).one("attention"), "sm_80")
    assert isinstance(own, TensorAttentionTile) and own.warps == 1
    whole(64, (1, 300), static=True)


def by_definition(
    q: npt.NDArray[np.float16], k: npt.NDArray[np.float16], v: npt.NDArray[np.float16], mask: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """One head, in float64; a query that sees no key gives zeros."""
    scores = q.astype(np.float64) @ k.astype(np.float64).T / np.sqrt(q.shape[1]) + mask
    largest = scores.max(1, keepdims=True)
    powers = np.exp(scores - np.where(np.isinf(largest), 0, largest))
    total = powers.sum(1, keepdims=True)
    return np.asarray(powers @ v.astype(np.float64) / np.where(total == 0, 1, total), np.float64)


@pytest.mark.without_device
@pytest.mark.parametrize("case", ["no key", "first keys", "large scores", "rising scores", "falling scores"])
def test_the_softmax_of_scores_that_come_in_steps(case: str) -> None:
    rows, keys, size = 20, 150, 16
    q, k, v = (RNG.standard_normal((n, size)).astype(np.float16) for n in (rows, keys, keys))
    mask = np.zeros((rows, keys), np.float16)
    if case == "no key":
        mask[::3] = -np.inf
    elif case == "first keys":  # whole steps in which a query sees nothing, before and behind others
        mask[::2, :130], mask[1::2, 70:] = -np.inf, -np.inf
    elif case == "large scores":  # beyond what a float16 holds
        q, k = q * np.float16(200), k * np.float16(200)
    else:
        order = np.linspace(0, 30, keys, dtype=np.float32)
        mask = np.broadcast_to(order if case == "rising scores" else order[::-1], mask.shape).astype(np.float16)
    wanted = by_definition(q, k, v, mask.astype(np.float32))
    if case == "large scores":
        assert np.abs(q.astype(np.float64) @ k.astype(np.float64).T).max() > np.finfo(np.float16).max
    (found,) = run_on_host(model("float16", size, (1, 1), mask="float16[s,t]"), [q[None], k[None], v[None], mask])
    found = found[0]
    assert np.isfinite(found).all()
    assert distance(found, wanted) <= ALLOWED["float16"]
    if case == "no key":
        assert not found[::3].any()


COMPILED: dict[str, onnx.ModelProto] = {
    "any_length": model("float16", 64),
    "causal": model("float16", 64, extra=", is_causal = 1"),
    "shared_heads_of_128": model("float16", 128, (8, 2), ", is_causal = 1", mask="bool[s,t]"),
    "masked_heads_of_32": model("float16", 32, mask="float16[b,1,s,t]"),
    "heads_of_80": model("float16", 80, sizes=(2048, 2048), extra=", is_causal = 1"),
    "one_query": model("float16", 64, sizes=(1, 1024)),
    "ragged": model("float16", 64, sizes=(37, 53)),
    "heads_of_6": model("float16", 6),
    "heads_of_15": model("float16", 15),
    "one_query_of_33": model("float16", 33, sizes=(1, 1000)),
    "heads_of_65": model("float16", 65, sizes=(2048, 2048), extra=", is_causal = 1"),
    "heads_of_192": model("float16", 192, extra=", is_causal = 1", mask="float16[b,1,s,t]"),
    "brain": model("bfloat16", 64),
    "brain_of_128": model("bfloat16", 128, extra=", is_causal = 1"),
}


@pytest.mark.without_device
@pytest.mark.parametrize("architecture", NVIDIA)
def test_it_compiles_to_tensor_core_instructions(architecture: str) -> None:
    gpu = GPUS[architecture]
    functions = {name: fused(found).one("attention") for name, found in COMPILED.items()}
    assert all(isinstance(tile(function, architecture), TensorAttentionTile) for function in functions.values())
    scheduled_ones = {name: scheduled(f, launches(f, attention.lower, gpu)) for name, f in functions.items()}
    compiled = nvidia().compile(cuda_code(scheduled_ones, gpu).source, architecture)
    assert len(compiled.kernels) == len(COMPILED)
    for name, resources in compiled.kernels.items():
        assert resources.spilled_bytes == 0, name
        assert resources.shared_bytes <= 48 << 10
        assert resources.registers <= gpu.registers
    bodies = {text.split("(")[0].strip(): text for text in compiled.ptx.split(".visible .entry")[1:]}
    assert set(bodies) == set(compiled.kernels)
    for name, text in bodies.items():
        kind = "bf16" if name.startswith("brain") else "f16"
        # Both products, and nothing of a matrix of scores in memory.
        assert text.count(f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32") >= 2, name
        assert "ldmatrix.sync.aligned.m8n8.x4.trans" in text
        assert "ldmatrix.sync.aligned.m8n8.x4.shared" in text
        copied = {
            "heads_of_6_kernel": "cp.async.ca.shared.global",
            "heads_of_15_kernel": "ld.global",
            "heads_of_65_kernel": "ld.global",
            "one_query_of_33_kernel": "ld.global",
        }
        assert copied.get(name, "cp.async.cg.shared.global") in text


@pytest.mark.without_device
@pytest.mark.parametrize("case", ["float32", "large heads", "no tensor cores", "no asynchronous copies"])
def test_plain_cores_where_tensor_cores_cannot_be_used(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = model("float" if case == "float32" else "float16", 512 if case == "large heads" else 32)
    gpu = GPUS["sm_80"]
    if case == "no tensor cores":
        gpu = dataclasses.replace(gpu, tensor_cores=False)
    if case == "no asynchronous copies":
        gpu = dataclasses.replace(gpu, async_copies=False)
    monkeypatch.setitem(GPUS, "sm_80", gpu)
    assert not isinstance(tile(fused(found).one("attention"), "sm_80"), TensorAttentionTile)


@pytest.mark.without_device
@pytest.mark.parametrize("gpu", NVIDIA)
@pytest.mark.parametrize("size", [32, 64, 80, 128])
@pytest.mark.parametrize("rows", [1, 128, 2048, None])
def test_tiles_fit_the_architecture(gpu: str, size: int, rows: int | None) -> None:
    found = best_tensor_attention_tile(AttentionSizes(12, rows, rows, size, size, 1.0, 2), GPUS[gpu])
    assert found is not None and found.fits(GPUS[gpu])


@pytest.mark.without_device
def test_traffic_is_linear_in_length() -> None:
    """As the model says, and as it is counted from the code: keys and values come once to a cache that holds them."""
    gpu = GPUS["sm_80"]
    sizes = [AttentionSizes(12, length, length, 64, 64, 1.0, 2) for length in (2048, 8192)]
    tiles = [best_tensor_attention_tile(each, gpu) for each in sizes]
    moved = [estimate_tensor_attention(s, t, gpu).traffic_bytes for s, t in zip(sizes, tiles, strict=True) if t]
    assert moved[1] == 4 * moved[0]
    function = fused(model("float16", 32)).one("attention")
    made = launches(function, attention.lower, gpu)
    assert all(not launch.scratch for launch in made)
    flattened = flat(scheduled(function, made), cuda_target(gpu))
    for length in (256, 1024):
        found = traffic(flattened, [{"registers": 128, "shared_bytes": 20480}], gpu, {"b": 1, "s": length, "t": length})
        assert not found.unknown
        assert found.memory_bytes == (2 * 4 + 2 * 2) * length * 32 * 2  # queries and results of 4 heads, keys of 2


@pytest.mark.without_device
def test_the_forecast_is_of_tensor_cores() -> None:
    kernel = decode(fused(model("float16", 64, (12, 12), sizes=(2048, 2048))).one("attention"))
    assert kernel is not None
    on_tensor_cores, plain = (forecast(inline(kernel), each) for each in (GPUS["sm_80"], PLAIN))
    assert on_tensor_cores.seconds < plain.seconds / 2
    assert on_tensor_cores.flops == plain.flops
    assert on_tensor_cores.seconds > on_tensor_cores.flops / GPUS["sm_80"].flops["float16"]
