"""Activations that are quantized as the model runs, each row by its own largest number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.target import Target
from tests.backends.bfloat16 import instructions, usable
from tests.backends.int8 import TARGETS, Array, number, run, some_bytes
from tests.backends.running import compiled, oracle, parse

RNG = np.random.default_rng(23)
TINY = 1e-12


def graph(rows: str, depth: int, columns: int, product: str) -> str:
    """Rows of float32, quantized by their own scales, times a constant matrix."""
    return f"""g (float[{rows},{depth}] x) => (float[{rows},{columns}] y) {{
        a = Abs(x) m = ReduceMax<keepdims=0>(a, axes) n = Max(m, tiny) s = Div(n, most)
        q = QuantizeLinear<axis=0, output_dtype=3>(x, s) d = DequantizeLinear<axis=0>(q, s)
        e = DequantizeLinear<axis={0 if "transB=1" in product else 1}>(w, t) y = {product} }}"""


def parameters(depth: int, columns: int, transposed: bool = False) -> dict[str, Array]:
    """The initializers of `graph`."""
    weight = some_bytes(RNG, "int8", depth, columns)
    return {
        "axes": np.array([1]),
        "tiny": number(TINY),
        "most": number(127),
        "w": weight.T.copy() if transposed else weight,
        "t": RNG.uniform(0.001, 0.02, columns).astype(np.float32),
        "b": RNG.standard_normal(columns).astype(np.float32),
    }


def product(x: Array, p: dict[str, Array]) -> Array:
    """The result in float64, from scales and bytes in float32."""
    scale = np.maximum(np.abs(x).max(1), np.float32(TINY)) / np.float32(127)
    codes = np.clip(np.rint(x / scale[:, None]), -128, 127)
    result: Array = (codes.astype(np.float64) * scale[:, None]) @ (p["w"].astype(np.float64) * p["t"])
    return result


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [(1, 16, 16), (13, 50, 37), (70, 64, 96)])
def test_each_row_has_its_scale(size: tuple[int, int, int], target: str, tmp_path: Path) -> None:
    m, k, n = size
    p = parameters(k, n)
    x = RNG.standard_normal((m, k)).astype(np.float32) * RNG.uniform(0.01, 100, (m, 1)).astype(np.float32)
    y, executable = run(graph(str(m), k, n, "MatMul(d, e)"), p, [x], usable(target))
    wanted = product(x, p)
    # a quotient that is rounded the other way is one step of one element: at most its largest weight
    step = np.abs(x).max(1, keepdims=True) / 127 * 128 * p["t"]
    assert (np.abs(y - wanted) <= 1e-5 * np.abs(wanted) + 1e-6 * step * k).mean() > 0.99
    assert (np.abs(y - wanted) <= 2 * step).all()
    cpu = Target.parse(target).cpu
    assert cpu is not None
    assert ("vpdpbusd" in instructions(executable, tmp_path)) == cpu.vnni


@pytest.mark.parametrize("rows", [1, 5, 33])
def test_a_symbolic_number_of_rows_and_a_gemm(rows: int) -> None:
    p = parameters(24, 40, transposed=True)
    text = graph("m", 24, 40, "Gemm<alpha=0.5, transB=1>(d, e, b)")
    x = RNG.standard_normal((rows, 24)).astype(np.float32)
    y, _ = run(text, p, [x])
    theirs = oracle(parse(text, p), [x])[0]
    np.testing.assert_allclose(y, theirs, rtol=1e-4, atol=1e-4)


def test_a_row_of_zeros() -> None:
    p = parameters(16, 16)
    x = np.zeros((2, 16), np.float32)
    x[1] = 1
    y, _ = run(graph("2", 16, 16, "MatMul(d, e)"), p, [x])
    assert (y[0] == 0).all()
    np.testing.assert_allclose(y[1], product(x, p)[1], rtol=1e-5)


def test_scales_of_columns_are_no_integer_product(tmp_path: Path) -> None:
    p = parameters(16, 16) | {"s": RNG.uniform(0.01, 0.02, 16).astype(np.float32)}
    text = """g (int8[4,16] x, float[16] s) => (float[4,16] y) {
        d = DequantizeLinear<axis=1>(x, s) e = DequantizeLinear<axis=1>(w, t) y = MatMul(d, e) }"""
    scale = p.pop("s")
    x = some_bytes(RNG, "int8", 4, 16)
    model = parse(text, p)
    executable = compiled(model, "cpu:x86-64-v3")
    y = executable.run([x, scale], 1)[0]
    np.testing.assert_allclose(y, oracle(model, [x, scale])[0], rtol=1e-4, atol=1e-3)
    assert "pmaddwd" not in instructions(executable, tmp_path)
