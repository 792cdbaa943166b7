"""The short form of rounding to a byte gives what ONNX says, at ties, at the bounds and far beyond them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.backends.bfloat16 import instructions
from tests.backends.int8 import Array, number, run

EDGES = np.array(
    [0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 127.5, 128.5, 254.5, 255.5, -127.5, -128.5, -129.5, 1e4, -1e4],
    np.float32,
)
HUGE = np.array([4194303.5, 4194304.5, 8388607.5, 1.7e7, 3e9, 3e38, np.inf], np.float32)
ROUND = "nearbyint is one instruction: vrndscaleps or vroundps"


def wanted(x: Array, zero: int, kind: str) -> Array:
    """ONNX's formula."""
    info = np.iinfo(kind)
    bounded: Array = np.clip(np.rint(x.astype(np.float64)) + zero, info.min, info.max)
    return bounded.astype(kind)


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:generic"])
@pytest.mark.parametrize(("kind", "zero"), [("uint8", 0), ("uint8", 128), ("uint8", 3), ("int8", 0), ("int8", -7)])
def test_every_kind_of_number(kind: str, zero: int, target: str) -> None:
    random = np.random.default_rng(3).uniform(-300, 300, 4000).astype(np.float32)
    x = np.concatenate([EDGES, HUGE, -HUGE, random, np.round(random * 2) / 2])
    text = f"g (float[{x.size}] x) => ({kind}[{x.size}] y) {{ y = QuantizeLinear(x, s, z) }}"
    y, _ = run(text, {"s": number(1), "z": number(zero, kind)}, [x], target)
    np.testing.assert_array_equal(y, wanted(x, zero, kind))


def test_a_constant_in_front_is_not_taken_together_with_it() -> None:
    x = np.arange(-64, 64, dtype=np.float32) / 4
    text = "g (float[128] x) => (uint8[128] y) { a = Add(x, c) y = QuantizeLinear(a, s, z) }"
    y, _ = run(text, {"c": number(0.3), "s": number(1), "z": number(9, "uint8")}, [x])
    np.testing.assert_array_equal(y, wanted(x + np.float32(0.3), 9, "uint8"))


def test_it_is_used(tmp_path: Path) -> None:
    text = "g (float[64] x) => (uint8[64] y) { y = QuantizeLinear(x, s, z) }"
    _, executable = run(text, {"s": number(0.7), "z": number(9, "uint8")}, [EDGES[:1].repeat(64)], "cpu:x86-64-v3")
    assert "vroundps" not in instructions(executable, tmp_path), ROUND


@pytest.mark.parametrize("kind", ["int16", "uint16"])
def test_wider_types_are_left_as_they_are(kind: str) -> None:
    x = np.concatenate([EDGES, np.array([40000.5, -40000.5, 70000], np.float32)])
    text = f"g (float[{x.size}] x) => ({kind}[{x.size}] y) {{ y = QuantizeLinear(x, s, z) }}"
    y, _ = run(text, {"s": number(1), "z": number(5, kind)}, [x])
    np.testing.assert_array_equal(y, wanted(x, 5, kind))
