"""Integer products of quantized tensors: every size, type, zero point and instruction set; and what is not one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.cpu.tiles import Tiles
from backends.relax.byte_products import MOST_TERMS
from backends.relax.packing import byte_panels, byte_sums
from optimizer.executable import Executable
from optimizer.target import CPUS, Target
from tests.backends.bfloat16 import instructions, usable
from tests.backends.int8 import TARGETS, Array, close, number, run, some_bytes
from tests.backends.running import compiled, oracle, parse

RNG = np.random.default_rng(5)


def is_integer(executable: Executable, folder: Path) -> bool:
    """Whether bytes are multiplied by the processor's own instruction."""
    return "vpdpbusd" in instructions(executable, folder)


def parameters(k: int, n: int, kind: str, zero: int, per_channel: bool = True) -> dict[str, Array]:
    """Initializers: scale and zero point of `x`, weight `w` [k, n] with its scale `t`, bias `b`."""
    return {
        "s": number(0.013),
        "z": number(zero, kind),
        "w": some_bytes(RNG, "int8", k, n),
        "t": RNG.uniform(0.001, 0.02, n if per_channel else ()).astype(np.float32),
        "b": RNG.standard_normal(n).astype(np.float32),
    }


def product(x: Array, p: dict[str, Array]) -> tuple[Array, Array]:
    """The product in float64, and the same of magnitudes that are rounded: the sum without its zero point, scaled."""
    sums = (x.astype(np.int64) - p["z"].astype(np.int64)) @ p["w"].astype(np.int64)  # exact, also where it is 0
    wanted = sums * (p["s"].astype(np.float64) * p["t"].astype(np.float64))
    return wanted, np.abs(wanted)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40),
    k=st.integers(1, 70),
    n=st.integers(1, 120),
    kind=st.sampled_from(["uint8", "int8"]),
    zero=st.sampled_from([0, 3, 127]),
    target=st.sampled_from(TARGETS),
)
def test_any_size_is_exact(m: int, k: int, n: int, kind: str, zero: int, target: str) -> None:
    p, x = parameters(k, n, kind, zero), some_bytes(RNG, kind, m, k)
    text = f"""g ({kind}[{m},{k}] x) => (float[{m},{n}] y) {{
        d = DequantizeLinear(x, s, z) e = DequantizeLinear<axis=1>(w, t)
        u = MatMul(d, e) v = Add(u, b) y = Relu(v) }}"""
    y, _ = run(text, p, [x], usable(target))
    wanted, size = product(x, p)
    close(y, np.maximum(wanted + p["b"], 0), size + np.abs(p["b"]), 4)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_saturates(target: str) -> None:
    x, w = np.full((3, 64), 255, np.uint8), np.full((64, 40), 127, np.int8)
    w[:, ::2] = -128
    text = """g (uint8[3,64] x) => (float[3,40] y) {
        d = DequantizeLinear(x, s) e = DequantizeLinear(w, s) y = MatMul(d, e) }"""
    y, _ = run(text, {"s": number(1), "w": w}, [x], usable(target))
    np.testing.assert_array_equal(y, x.astype(np.float32) @ w.astype(np.float32))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 15, 16, 17, 33])
def test_symbolic_rows_use_every_remainder(rows: int) -> None:
    p, x = parameters(25, 50, "int8", -7), some_bytes(RNG, "int8", rows, 25)
    text = """g (int8[m,25] x) => (float[m,50] y) {
        d = DequantizeLinear(x, s, z) e = DequantizeLinear<axis=1>(w, t) y = MatMul(d, e) }"""
    y, _ = run(text, p, [x])
    close(y, *product(x, p), 4)


@pytest.mark.parametrize("sizes", ["131,20", "m,20"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_that_share_out_the_rows(sizes: str, threads: int) -> None:
    p, x = parameters(20, 100, "uint8", 7), some_bytes(RNG, "uint8", 131, 20)
    text = f"""g (uint8[{sizes}] x) => (float[{sizes[:-2]}100] y) {{
        d = DequantizeLinear(x, s, z) e = DequantizeLinear<axis=1>(w, t) y = MatMul(d, e) }}"""
    y, _ = run(text, p, [x], threads=threads)
    close(y, *product(x, p), 4)


@pytest.mark.parametrize(
    ("weight_bytes", "together", "apart"), [(1 << 10, 4, True), (1 << 10, 2, False), (1 << 20, 4, False)]
)
def test_rows_are_shared_out_where_the_weights_stay_near(weight_bytes: int, together: int, apart: bool) -> None:
    assert Tiles(CPUS["znver5"]).rows_apart(weight_bytes, together) == apart


def test_weights_of_unknown_size_are_shared_out() -> None:
    assert not Tiles(CPUS["znver5"]).rows_apart(None, 4)


@pytest.mark.parametrize("shape", [(2, 5, 24), (2, 3, 4, 24)])
def test_batches(shape: tuple[int, ...]) -> None:
    p, x = parameters(24, 33, "uint8", 128), some_bytes(RNG, "uint8", *shape)
    sizes = ",".join(map(str, shape))
    text = f"""g (uint8[{sizes}] x) => (float[{sizes[:-2]}33] y) {{
        d = DequantizeLinear(x, s, z) e = DequantizeLinear<axis=1>(w, t) y = MatMul(d, e) }}"""
    y, _ = run(text, p, [x])
    close(y, *product(x, p), 4)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_gemm_with_a_weight_of_either_kind(transposed: int, per_channel: bool, kind: str, tmp_path: Path) -> None:
    p, x = parameters(20, 21, "int8", 5, per_channel), some_bytes(RNG, "int8", 9, 20)
    stored = p["w"] if kind == "int8" else (p["w"].astype(np.int16) + 128).astype(np.uint8)
    given_ = p | {"w": stored.T.copy() if transposed else stored, "m": number(0 if kind == "int8" else 128, kind)}
    if per_channel:
        given_["m"] = np.repeat(given_["m"], 21)
    text = f"""g (int8[9,20] x) => (float[9,21] y) {{
        d = DequantizeLinear(x, s, z) e = DequantizeLinear<axis={1 - transposed}>(w, t, m)
        y = Gemm<alpha=0.75, beta=2.0, transB={transposed}>(d, e, b) }}"""
    y, executable = run(text, given_, [x])
    wanted, size = product(x, p)
    close(y, 0.75 * wanted + 2 * p["b"], 0.75 * size + 2 * np.abs(p["b"]), 6)
    assert is_integer(executable, tmp_path) == _has_vnni()


def test_a_transposed_weight(tmp_path: Path) -> None:
    p, x = parameters(20, 36, "uint8", 9), some_bytes(RNG, "uint8", 9, 20)
    text = """g (uint8[9,20] x) => (float[9,36] y) {
        d = DequantizeLinear(x, s, z) e = DequantizeLinear<axis=0>(w, t)
        f = Transpose<perm=[1,0]>(e) y = MatMul(d, f) }"""
    y, executable = run(text, p | {"w": p["w"].T.copy()}, [x])
    close(y, *product(x, p), 4)
    assert is_integer(executable, tmp_path) == _has_vnni()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_a_chain_of_layers_differs_from_onnx_runtime_by_at_most_a_step(kind: str, target: str) -> None:
    middle = 128 if kind == "uint8" else 0
    p: dict[str, Array] = {
        "a": RNG.integers(-127, 128, (48, 70)).astype(np.int8),
        "c": RNG.integers(-127, 128, (70, 30)).astype(np.int8),
        "t": RNG.uniform(0.001, 0.003, 70).astype(np.float32),
        "v": RNG.uniform(0.001, 0.003, 30).astype(np.float32),
        "b": RNG.standard_normal(70).astype(np.float32),
        "s": number(0.03),
        "z": number(middle + 3, kind),
        "h": number(0.02),
        "i": number(middle - 100, kind),
    }
    text = f"""g (float[13,48] x) => (float[13,30] r, {kind}[13,30] y) {{
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear<axis=1>(a, t)
        m = MatMul(d, e) n = Add(m, b) o = Relu(n) q2 = QuantizeLinear(o, h, i) d2 = DequantizeLinear(q2, h, i)
        e2 = DequantizeLinear<axis=1>(c, v) r = MatMul(d2, e2) y = QuantizeLinear(r, s, z) }}"""
    x = RNG.standard_normal((13, 48)).astype(np.float32)
    model = parse(text, p)
    for ours, theirs in zip(compiled(model, usable(target)).run([x], 2), oracle(model, [x]), strict=True):
        steps = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        # a step of the hidden layer moves the sum by at most its scale times the largest weight
        flip = 0.02 * 127 * 0.003
        assert steps.max() <= (1 if ours.dtype == kind else 2 * flip)
        assert (steps > 1e-4).mean() < 0.02


def test_the_readers_of_one_activation_share_it() -> None:
    p = parameters(32, 32, "int8", 0)
    text = """g (float[8,32] x) => (float[8,32] y, float[8,32] r, int8[8,32] q) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) e = DequantizeLinear<axis=1>(w, t)
        y = MatMul(d, e) r = Add(d, y) }"""
    x = RNG.standard_normal((8, 32)).astype(np.float32)
    model = parse(text, p)
    for ours, theirs in zip(compiled(model).run([x], 1), oracle(model, [x]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


WEIGHT = "e = DequantizeLinear<axis=1>(w, t) y = MatMul(d, e)"


@pytest.mark.parametrize(
    ("change", "body"),
    [
        ({"m": np.arange(32, dtype=np.int8)}, "e = DequantizeLinear<axis=1>(w, t, m) y = MatMul(d, e)"),
        ({"m": number(4, "int8"), "t": number(0.02)}, "e = DequantizeLinear(w, t, m) y = MatMul(d, e)"),
        ({}, "e = DequantizeLinear<axis=0>(w, t) y = MatMul(d, e)"),
        (
            {"t": np.full((4, 32), 0.01, np.float32)},
            "e = DequantizeLinear<axis=0, block_size=8>(w, t) y = MatMul(d, e)",
        ),
        ({}, "c = Identity(d) e = DequantizeLinear<axis=1>(w, t) y = MatMul(c, e)"),
        ({"w": RNG.standard_normal((32, 32)).astype(np.float32)}, "y = MatMul(d, w)"),
    ],
    ids=["zero points", "zero point", "scales along K", "blocks", "another operator", "float weight"],
)
def test_what_is_no_integer_product_is_right_all_the_same(change: dict[str, Array], body: str, tmp_path: Path) -> None:
    p = parameters(32, 32, "uint8", 100) | change
    x = some_bytes(RNG, "uint8", 6, 32)
    model = parse(f"g (uint8[6,32] x) => (float[6,32] y) {{ d = DequantizeLinear(x, s, z) {body} }}", p)
    executable = compiled(model)
    np.testing.assert_allclose(executable.run([x], 1)[0], oracle(model, [x])[0], rtol=1e-4, atol=1e-3)
    assert not is_integer(executable, tmp_path)


def test_scales_of_the_run_and_floats_are_no_integer_product(tmp_path: Path) -> None:
    p = parameters(32, 32, "uint8", 100)
    x, scale = some_bytes(RNG, "uint8", 6, 32), number(0.01)
    model = parse(f"g (uint8[6,32] x, float h) => (float[6,32] y) {{ d = DequantizeLinear(x, h, z) {WEIGHT} }}", p)
    executable = compiled(model)
    np.testing.assert_allclose(executable.run([x, scale], 1)[0], oracle(model, [x, scale])[0], rtol=1e-4, atol=1e-3)
    assert not is_integer(executable, tmp_path)
    model = parse(f"g (float[6,32] d) => (float[6,32] y) {{ {WEIGHT} }}", p)
    executable = compiled(model)
    given_ = RNG.standard_normal((6, 32)).astype(np.float32)
    np.testing.assert_allclose(executable.run([given_], 1)[0], oracle(model, [given_])[0], rtol=1e-4, atol=1e-4)
    assert not is_integer(executable, tmp_path)


def test_a_sum_that_could_overflow_is_taken_in_float32(tmp_path: Path) -> None:
    depth = MOST_TERMS + 1
    p = {"s": number(0.01), "w": np.full((depth, 16), 127, np.int8)}
    text = f"""g (uint8[1,{depth}] x) => (float[1,16] y) {{
        d = DequantizeLinear(x, s) e = DequantizeLinear(w, s) y = MatMul(d, e) }}"""
    y, executable = run(text, p, [np.full((1, depth), 255, np.uint8)])
    np.testing.assert_allclose(y, depth * 127 * 255 * 1e-4, rtol=1e-3)
    assert not is_integer(executable, tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_bytes_are_multiplied_by_the_processor_that_can(target: str, tmp_path: Path) -> None:
    cpu = Target.parse(usable(target)).cpu
    assert cpu is not None
    p, x = parameters(64, 48, "uint8", 1), some_bytes(RNG, "uint8", 32, 64)
    _, executable = run(
        f"g (uint8[32,64] x) => (float[32,48] y) {{ d = DequantizeLinear(x, s, z) {WEIGHT} }}", p, [x], target
    )
    assert is_integer(executable, tmp_path) == cpu.vnni
    if not cpu.vnni and cpu.architecture == "x86_64":
        assert "pmaddwd" in instructions(executable, tmp_path)


@pytest.mark.parametrize("name", ["icelake-server", "znver4", "znver5", "sapphirerapids"])
def test_named_processors_have_the_instruction(name: str) -> None:
    assert CPUS[name].vnni


@pytest.mark.parametrize("k", [1, 4, 5, 6, 7])
@pytest.mark.parametrize("transposed", [False, True])
def test_four_rows_share_one(k: int, transposed: bool) -> None:
    matrix = (np.arange(k * 7) * 5 % 251 - 125).astype(np.int8).reshape(k, 7)
    stored = (matrix.astype(np.int16) + 128).astype(np.uint8)
    given_ = stored.T if transposed else stored
    packed = byte_panels(given_, offset=-128, width=4, transposed=transposed, together=4)
    assert (packed.dtype, packed.shape) == (np.dtype("int8"), (2, -(-k // 4), 16))
    for row in range(4 * packed.shape[1]):
        for column in range(8):
            expected = matrix[row, column] if row < k and column < 7 else 0
            assert packed[column // 4, row // 4, column % 4 * 4 + row % 4] == expected
    sums = byte_sums(given_, kept=0 if transposed else 1, factor=3, offset=-128)
    np.testing.assert_array_equal(sums, 3 * matrix.astype(np.int32).sum(0))


def _has_vnni() -> bool:
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    return cpu.vnni
