"""Bytes behind sums of bytes: every tail is rounded as ONNX says, but for numbers that lie next to a tie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.cpu.tiles import Tiles
from optimizer.target import CPUS, Target
from tests.backends.bfloat16 import instructions, usable
from tests.backends.int8 import TARGETS, Array, number, run, some_bytes

RNG = np.random.default_rng(17)
TAILS: dict[str, tuple[str, Callable[[Array, Array], Array]]] = {
    "bias": ("y = QuantizeLinear(v, h, i)", lambda v, _: v),
    "Relu": ("u = Relu(v) y = QuantizeLinear(u, h, i)", lambda v, _: np.maximum(v, 0)),
    "Clip": ("u = Clip(v, low, high) y = QuantizeLinear(u, h, i)", lambda v, _: np.clip(v, -0.5, 2.5)),
    "Clip from 0": ("u = Clip(v, nil, high) y = QuantizeLinear(u, h, i)", lambda v, _: np.clip(v, 0, 2.5)),
    "residual": ("a = Add(v, r) u = Relu(a) y = QuantizeLinear(u, h, i)", lambda v, r: np.maximum(v + r, 0)),
    "difference": ("a = Sub(r, v) y = QuantizeLinear(a, h, i)", lambda v, r: r - v),
    "gate": ("a = Mul(v, r) u = Add(a, a) y = QuantizeLinear(u, h, i)", lambda v, r: 2 * v * r),
}
"""The text of what follows `v`, the product and its bias, and what it is; `r` is another input."""
NEAR = 1e-3
"""Of a step: so near to a tie either byte is right."""


def weights(k: int, n: int, kind: str, zero: int, step: float = 0.02) -> dict[str, Array]:
    """Initializers: of the factors, of the tails, and scale `h` and zero point `i` of the result."""
    return {
        "s": number(0.013),
        "z": number(114, "uint8"),
        "w": some_bytes(RNG, "int8", k, n),
        "t": RNG.uniform(0.0001, 0.0004, n).astype(np.float32),
        "b": RNG.standard_normal(n).astype(np.float32),
        "h": number(step),
        "i": number(zero, kind),
        "low": number(-0.5),
        "high": number(2.5),
        "nil": number(0),
    }


def check(y: Array, real: Array, kind: str, zero: int, step: float = 0.02) -> None:
    """Demand the bytes of numbers; one step beside them for those near a tie."""
    info = np.iinfo(kind)
    exact = real / np.float64(np.float32(step))
    wanted = np.clip(np.rint(exact) + zero, info.min, info.max)
    off = np.abs(y.astype(np.float64) - wanted)
    tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < NEAR
    assert (y.dtype, y.shape) == (np.dtype(kind), real.shape)
    assert (off <= tie).all()
    assert y.min() < y.max()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 30),
    k=st.sampled_from([3, 16, 64, 130]),
    n=st.sampled_from([4, 16, 32, 48, 64, 80, 96, 100, 192, 229]),
    kind=st.sampled_from(["uint8", "int8"]),
    zero=st.sampled_from([0, 1, 6, 7, 127]),
    tail=st.sampled_from(sorted(TAILS)),
    target=st.sampled_from(TARGETS),
)
def test_any_tail(m: int, k: int, n: int, kind: str, zero: int, tail: str, target: str) -> None:
    zero = -zero - 1 if kind == "int8" and zero % 2 else zero
    p, x, r = weights(k, n, kind, zero), some_bytes(RNG, "uint8", m, k), RNG.standard_normal((m, n), np.float32)
    text, formula = TAILS[tail]
    inputs = "uint8[{m},{k}] x, float[{m},{n}] r" if " r)" in text or "(r," in text else "uint8[{m},{k}] x"
    head = f"g ({inputs.format(m=m, k=k, n=n)}) => ({kind}[{m},{n}] y) {{ d = DequantizeLinear(x, s, z)"
    given_ = [x, r] if "float" in inputs else [x]
    y, _ = run(
        f"{head} e = DequantizeLinear<axis=1>(w, t) c = MatMul(d, e) v = Add(c, b) {text} }}", p, given_, usable(target)
    )
    sums = (x.astype(np.int64) - 114) @ p["w"].astype(np.int64)
    v = sums * (p["s"].astype(np.float64) * p["t"].astype(np.float64)) + p["b"]
    check(y, formula(v, r.astype(np.float64)), kind, zero)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("kind", "zero"), [("uint8", 0), ("uint8", 1), ("uint8", 128), ("uint8", 255), ("int8", -7), ("int8", -128)]
)
@pytest.mark.parametrize("relu", [False, True])
def test_ties_go_to_the_even_number(kind: str, zero: int, relu: bool, target: str) -> None:
    x, w = np.arange(256, dtype=np.uint8)[:, None].repeat(4, 1), np.zeros((4, 96), np.int8)
    w[0], w[1] = 1, np.arange(96) % 3
    p = {"s": number(0.5), "z": number(128, "uint8"), "w": w, "h": number(1), "i": number(zero, kind)}
    tail = "u = Relu(c) y = QuantizeLinear(u, h, i)" if relu else "y = QuantizeLinear(c, h, i)"
    text = f"""g (uint8[256,4] x) => ({kind}[256,96] y) {{ d = DequantizeLinear(x, s, z)
        e = DequantizeLinear(w, s) c = MatMul(d, e) {tail} }}"""
    y, _ = run(text, p, [x], usable(target))
    real = (x.astype(np.float64) - 128) @ w * 0.25
    info = np.iinfo(kind)
    wanted = np.clip(np.rint(np.maximum(real, 0) if relu else real) + zero, info.min, info.max)
    np.testing.assert_array_equal(y, wanted.astype(kind))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("step", [1e-3, 1e-12, 1e-25, 1e-35])
def test_what_is_far_too_large_is_the_last_byte_on_its_side(kind: str, step: float) -> None:
    w = np.ones((4, 64), np.int8)
    w[:, 1::2] = -1
    p = {"s": number(1e4), "w": w, "h": number(step), "i": number(1, kind)}
    text = f"""g (uint8[8,4] x) => ({kind}[8,64] y) {{ d = DequantizeLinear(x, s)
        e = DequantizeLinear(w, s) c = MatMul(d, e) y = QuantizeLinear(c, h, i) }}"""
    y, _ = run(text, p, [np.full((8, 4), 200, np.uint8)])
    np.testing.assert_array_equal(y, np.where(w[:1] > 0, np.iinfo(kind).max, np.iinfo(kind).min).repeat(8, 0))


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("shape", ["3,3", "1,1"])
@pytest.mark.parametrize("channels", [16, 40, 64])
def test_convolutions(kind: str, shape: str, channels: int) -> None:
    side = int(shape[0])
    p = weights(8, channels, kind, 5)
    p |= {"w": some_bytes(RNG, "int8", channels, 8, side, side), "z": number(3, "uint8")}
    x = some_bytes(RNG, "uint8", 1, 8, 11, 13)
    text = f"""g (uint8[1,8,11,13] x) => ({kind}[1,{channels},11,13] y) {{ d = DequantizeLinear(x, s, z)
        e = DequantizeLinear<axis=0>(w, t) v = Conv<pads=[{side // 2},{side // 2},{side // 2},{side // 2}]>(d, e, b)
        u = Relu(v) y = QuantizeLinear(u, h, i) }}"""
    y, _ = run(text, p, [x])
    padded = np.pad(x.astype(np.int64) - 3, ((0, 0), (0, 0), (side // 2,) * 2, (side // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (2, 3))
    sums = np.einsum("nchwyx,ocyx->nohw", windows, p["w"].astype(np.int64))
    scale = p["s"].astype(np.float64) * p["t"].astype(np.float64)
    check(y, np.maximum(sums * scale[:, None, None] + p["b"][:, None, None], 0), kind, 5)


def test_nan_and_infinity_stay_in_floats() -> None:
    p, x = weights(16, 64, "uint8", 0), some_bytes(RNG, "uint8", 5, 16)
    r = RNG.standard_normal((5, 64), np.float32)
    r[0, :3] = np.nan, np.inf, -np.inf
    text = """g (uint8[5,16] x, float[5,64] r) => (float[5,64] y) { d = DequantizeLinear(x, s, z)
        e = DequantizeLinear<axis=1>(w, t) c = MatMul(d, e) v = Add(c, r) y = Relu(v) }"""
    y, _ = run(text, p, [x, r])
    sums = (x.astype(np.int64) - 114) @ p["w"].astype(np.int64)
    real = sums * (p["s"].astype(np.float64) * p["t"].astype(np.float64)) + r
    np.testing.assert_allclose(y, np.where(np.isnan(real), real, np.maximum(real, 0)), rtol=1e-5, atol=1e-6)
    assert np.isnan(y[0, 0]) and np.isposinf(y[0, 1]) and y[0, 2] == 0


@pytest.mark.parametrize("target", ["cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:generic"])
def test_vectors_are_packed_together(target: str, tmp_path: Path) -> None:
    p, x = weights(64, 64, "uint8", 0), some_bytes(RNG, "uint8", 32, 64)
    text = """g (uint8[32,64] x) => (uint8[32,64] y) { d = DequantizeLinear(x, s, z)
        e = DequantizeLinear<axis=1>(w, t) v = MatMul(d, e) u = Relu(v) y = QuantizeLinear(u, h, i) }"""
    _, executable = run(text, p, [x], usable(target))
    code = instructions(executable, tmp_path)
    assert "packuswb" in code and "packssdw" in code
    assert "vpmovdb" not in code and "maxps" not in code, "a Relu is a bound that packing sets anyway"


@pytest.mark.parametrize("name", ["znver5", "sapphirerapids", "znver4", "skylake-avx512", "haswell"])
@pytest.mark.parametrize("vectors", [1, 2, 3, 4, 5, 6])
def test_tiles_of_short_sums_are_smaller_and_as_fast(name: str, vectors: int) -> None:
    tiles = Tiles(CPUS[name])
    usual, short = tiles.tile_rows(4800, vectors), tiles.tile_rows(4800, vectors, short=True)
    assert 1 <= short <= usual
    a_row = [tiles.step_cycles(rows, vectors) / rows for rows in (short, usual)]
    assert a_row[0] <= a_row[1] * 1.01
    assert tiles.is_short(16, 4) and not tiles.is_short(16, 1) and not tiles.is_short(200, 4)
    assert not tiles.is_short(None, 4)


def test_short_sums_have_whole_lines_of_bytes() -> None:
    cpu = Target.parse("cpu:znver5").cpu
    assert cpu is not None
    assert Tiles(cpu).panel_width(3136, 256, 16, "uint8") == 64
