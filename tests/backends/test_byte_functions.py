"""What lies between roundings of one tensor of bytes, as a table: every byte, every length; and what is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.cpu.tables import definitions
from optimizer.target import Target
from tests.backends.bfloat16 import instructions
from tests.backends.int8 import Array, number
from tests.backends.running import compiled, oracle, parse

TARGETS = ("cpu", "cpu:x86-64-v3", "cpu:generic")
HARD_SWISH = """g ({kind}[{shape}] x) => (uint8[{shape}] y) {{
    a = DequantizeLinear(x, s, z)
    h = HardSigmoid<alpha = 0.3, beta = 0.4>(a) hq = QuantizeLinear(h, t, u) hd = DequantizeLinear(hq, t, u)
    m = Mul(a, hd) mq = QuantizeLinear(m, s, w) md = DequantizeLinear(mq, s, w)
    c = DequantizeLinear(k, t, u) o = Add(c, md) y = QuantizeLinear(o, s, w) }}"""
"""A hard swish and a sum, of which each step is rounded; the summand is a rounded constant."""
NUMBERS = {"s": number(0.04), "t": number(1 / 255), "u": number(0, "uint8"), "w": number(90, "uint8")}


def numbers(kind: str = "uint8") -> dict[str, Array]:
    return {**NUMBERS, "z": number(120 if kind == "uint8" else -7, kind), "k": np.array([77], np.uint8)}


def has_tables() -> bool:
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    return cpu.vbmi


needs_tables = pytest.mark.skipif(not has_tables(), reason="the processor does not look bytes up in registers")


def looks_up(text: str, weights: dict[str, Array], folder: Path) -> bool:
    found = instructions(compiled(parse(text, weights)), folder)
    return "vpermi2b" in found or "vpermt2b" in found


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_byte_is_that_of_onnx_runtime(kind: str, target: str) -> None:
    model = parse(HARD_SWISH.format(kind=kind, shape="n,m"), numbers(kind))
    executable = compiled(model, target)
    every = np.arange(256).astype(np.uint8).view(kind)
    for length in (*range(1, 20), 31, 33, 256, 1000):
        x = np.resize(every, (3, length))
        found, wanted = executable.run([x], 2)[0], oracle(model, [x])[0]
        if target == "cpu" and has_tables():
            np.testing.assert_array_equal(found, wanted)
        else:  # our own sums may fall on the other side of the middle between two steps
            assert (np.abs(found.astype(int) - wanted.astype(int)) <= 1).all()


@needs_tables
def test_it_is_looked_up(tmp_path: Path) -> None:
    assert looks_up(HARD_SWISH.format(kind="uint8", shape="3,64"), numbers(), tmp_path)


def test_bytes_with_a_sign_that_a_product_reads() -> None:
    text = """g (uint8[4,32] x) => (float[4,8] y) {
        a = DequantizeLinear(x, s, z) h = Tanh(a) r = Mul(h, h) q = QuantizeLinear(r, t, j)
        d = DequantizeLinear(q, t, j) e = DequantizeLinear(v, s) y = MatMul(d, e) }"""
    rng = np.random.default_rng(0)
    weights = {**numbers(), "j": number(-128, "int8"), "v": rng.integers(-127, 128, (32, 8)).astype(np.int8)}
    model, x = parse(text, weights), rng.integers(0, 256, (4, 32)).astype(np.uint8)
    np.testing.assert_allclose(compiled(model).run([x], 2)[0], oracle(model, [x])[0], rtol=1e-5, atol=1e-5)


def test_behind_a_convolution_whose_channels_lie_last() -> None:
    text = """g (float[1,3,9,9] x) => (uint8[1,16,9,9] y) {
        c = Conv<pads = [1,1,1,1]>(x, f) q = QuantizeLinear(c, s, w) a = DequantizeLinear(q, s, w)
        h = Sigmoid(a) r = Mul(a, h) y = QuantizeLinear(r, s, w) }"""
    rng = np.random.default_rng(0)
    filters = (rng.integers(-8, 9, (16, 3, 3, 3)) / 32).astype(np.float32)
    x = (rng.integers(-8, 9, (1, 3, 9, 9)) / 32).astype(np.float32)  # sums that are exact in any order
    model = parse(text, {**numbers(), "f": filters})
    (found,), (wanted,) = compiled(model).run([x], 2), oracle(model, [x])
    assert (np.abs(found.astype(int) - wanted.astype(int)) <= (0 if has_tables() else 1)).all()


OTHERS = {
    "too short": "a = DequantizeLinear(x, s, z) h = Tanh(a) i = Neg(h) y = QuantizeLinear(i, s, w)",
    "two tensors": "a = DequantizeLinear(x, s, z) b = DequantizeLinear(x2, s, z) h = Mul(a, b) i = Tanh(h) "
    "y = QuantizeLinear(i, s, w)",
    "a vector": "a = DequantizeLinear(x, s, z) h = Mul(a, vector) i = Tanh(h) j = Neg(i) y = QuantizeLinear(j, s, w)",
    "scales": "a = DequantizeLinear<axis = 1>(x, vector) h = Tanh(a) i = Neg(h) j = Exp(i) y = QuantizeLinear(j, s, w)",
    "not each by itself": "a = DequantizeLinear(x, s, z) h = Softmax(a) i = Neg(h) j = Exp(i) "
    "y = QuantizeLinear(j, s, w)",
    "last scales": "a = DequantizeLinear(x, s, z) h = Tanh(a) i = Neg(h) j = Exp(i) "
    "y = QuantizeLinear<axis = 1>(j, vector)",
    "floats": "a = Abs(f) h = Tanh(a) i = Neg(h) j = Exp(i) y = QuantizeLinear(j, s, w)",
}


@needs_tables
@pytest.mark.parametrize("body", OTHERS.values(), ids=OTHERS)
def test_what_is_no_function_of_one_byte(body: str, tmp_path: Path) -> None:
    text = f"g (uint8[3,32] x, uint8[3,32] x2, float[3,32] f) => (uint8[3,32] y) {{ {body} }}"
    weights = {**numbers(), "vector": np.linspace(0.01, 0.03, 32, dtype=np.float32)}
    weights = {name: array for name, array in weights.items() if f"{name}," in body or f"{name})" in body}
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (3, 32)).astype(np.uint8) for _ in range(2)]
    inputs: list[Array] = [*arrays, rng.standard_normal((3, 32)).astype(np.float32)]
    model = parse(text, weights)
    (found,), (wanted,) = compiled(model).run(inputs, 2), oracle(model, inputs)
    assert (np.abs(found.astype(int) - wanted.astype(int)) <= 1).all()
    assert not looks_up(text, weights, tmp_path)


def test_an_int8_that_is_a_result(tmp_path: Path) -> None:
    text = """g (uint8[3,32] x) => (int8[3,32] y) {
        a = DequantizeLinear(x, s, z) h = Tanh(a) i = Neg(h) j = Exp(i) y = QuantizeLinear(j, s, v) }"""
    model = parse(text, {**numbers(), "v": number(-100, "int8")})
    x = np.arange(96).astype(np.uint8).reshape(3, 32)
    (found,), (wanted,) = compiled(model).run([x], 2), oracle(model, [x])
    assert (np.abs(found.astype(int) - wanted.astype(int)) <= 1).all()


def test_a_function_is_defined_once_for_each_table() -> None:
    names = {f"tersor.table_{bytes([n] * 256).hex()}" for n in (1, 2)}
    text = "".join(definitions(names | {"tirx.exp"}))
    assert text.count("[256 x i8] [i8 1,") == text.count("[256 x i8] [i8 2,") == 1
    assert not definitions({"tirx.exp"})
