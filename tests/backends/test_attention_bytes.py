"""Attention of bytes: exact scores, weights in 255 steps; and what is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from optimizer.executable import Executable
from tests.backends.bfloat16 import instructions
from tests.backends.int8 import TARGETS, Array, number, some_bytes
from tests.backends.running import compiled, distance, oracle, parse
from tests.backends.test_matmul_int8 import _has_vnni

SCALES = {"q": 0.02, "k": 0.015, "v": 0.03}
_STEP = 0.55 / 255
"""By how much a weight is off beside the largest one: half a step, and the error of the exponential."""


def graph(
    shapes: Sequence[str],
    zeros: Sequence[int],
    kind: str = "uint8",
    mask: str = "",
    attributes: str = "",
) -> tuple[str, dict[str, Array]]:
    """Attention of dequantized bytes; `shapes` of query, key, value and result."""
    declared = ", ".join(f"{kind}[{shape}] {name}" for shape, name in zip(shapes, "qkv", strict=False))
    masked, given = (f", {mask} m", ", m") if mask else ("", "")
    rows = " ".join(f"{name}d = DequantizeLinear({name}, {name}s, {name}z)" for name in "qkv")
    text = f"""g ({declared}{masked}) => (float[{shapes[3]}] y) {{
        {rows} y = Attention{attributes}(qd, kd, vd{given}) }}"""
    numbers = {f"{name}s": number(SCALES[name]) for name in "qkv"}
    return text, {**numbers, **{f"{name}z": number(zero, kind) for name, zero in zip("qkv", zeros, strict=True)}}


def any_length(
    mask: str = "", attributes: str = "", zeros: Sequence[int] = (128, 131, 128), size: int = 16, target: str = "cpu"
) -> Executable:
    """Four heads over two, of any length."""
    shapes = (f"b,4,s,{size}", f"b,2,t,{size}", f"b,2,t,{size}", f"b,4,s,{size}")
    return compiled(parse(*graph(shapes, zeros, mask=mask, attributes=attributes), opset=24), target)


def inputs(rows: int, keys: int, size: int = 16, kind: str = "uint8") -> list[Array]:
    rng = np.random.default_rng(rows * 1000 + keys)
    return [some_bytes(rng, kind, 2, *shape) for shape in ((4, rows, size), (2, keys, size), (2, keys, size))]


def check(found: Array, arrays: Sequence[Array], zeros: Sequence[int], bias: Array | float = 0.0) -> None:
    """Demand what follows from rounding the weights, beside the numbers that the bytes stand for."""
    query, key, value = (
        (x.astype(np.float64) - zero) * SCALES[name] for x, zero, name in zip(arrays, zeros, "qkv", strict=True)
    )
    key, value = (np.repeat(x, query.shape[1] // key.shape[1], axis=1) for x in (key, value))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1]) + bias
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e300))
    total, seen = powers.sum(-1, keepdims=True), np.isfinite(scores)
    wanted = np.divide(powers, total, out=np.zeros_like(powers), where=total > 0) @ value
    off = _STEP * (seen @ np.abs(value) + np.abs(wanted) * seen.sum(-1, keepdims=True))
    bound = off / np.maximum(total - _STEP * seen.sum(-1, keepdims=True), 0.5) + 1e-5
    error = np.abs(found - wanted)
    assert (found.dtype, found.shape) == (np.dtype("float32"), wanted.shape)
    assert (error <= bound).all(), f"{(error / bound).max()} times the bound"


SIZES = [(1, 1), (16, 5), (17, 7), (70, 131), (64, 128), (150, 402)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("zero", [0, 131, 255])
def test_any_length(target: str, zero: int) -> None:
    """Symbolic sizes: from one query over blocks that are not full to several blocks of keys."""
    executable = any_length(zeros=(128, zero, 128), target=target)
    for rows, keys in SIZES:
        arrays = inputs(rows, keys)
        check(executable.run(arrays, 2)[0], arrays, (128, zero, 128))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_known_sizes(sizes: tuple[int, int], kind: str) -> None:
    """Known sizes of either type: 0 is in the middle of bytes with a sign."""
    (rows, keys), zeros = sizes, (128, 131, 128) if kind == "uint8" else (0, 3, 0)
    shapes = (f"2,4,{rows},16", f"2,2,{keys},16", f"2,2,{keys},16", f"2,4,{rows},16")
    arrays = inputs(rows, keys, kind=kind)
    check(compiled(parse(*graph(shapes, zeros, kind))).run(arrays, 2)[0], arrays, zeros)


@pytest.mark.parametrize("size", [4, 20, 64, 80])
def test_heads_of_any_size(size: int) -> None:
    arrays = inputs(40, 77, size)
    check(any_length(size=size).run(arrays, 2)[0], arrays, (128, 131, 128))


def test_masks() -> None:
    """A row that sees nothing gives zero."""
    executable = any_length(mask="bool[b,1,s,t]")
    for rows, keys in ((17, 7), (70, 131)):
        arrays = inputs(rows, keys)
        mask = np.random.default_rng(0).random((2, 1, rows, keys)) < 0.7
        mask[0, 0, 3] = False
        (found,) = executable.run([*arrays, mask], 2)
        check(found, arrays, (128, 131, 128), np.where(mask, 0.0, -np.inf))
        assert not found[0, :, 3].any()


def test_causal() -> None:
    executable = any_length(attributes="<is_causal = 1>")
    arrays = inputs(200, 200)
    seen = np.tri(200, dtype=bool)
    check(executable.run(arrays, 2)[0], arrays, (128, 131, 128), np.where(seen, 0.0, -np.inf))


def test_scale() -> None:
    text, numbers = graph(["2,4,32,16"] * 4, (128, 120, 128), attributes="<scale = 0.4>")
    arrays = [x.repeat(4 // x.shape[1], axis=1) for x in inputs(32, 32)]
    model = parse(text, numbers)
    assert distance(compiled(model).run(arrays, 2)[0], oracle(model, arrays)[0]) < 0.02


def test_a_mask_that_is_added() -> None:
    executable = any_length(mask="float[b,1,s,t]")
    arrays = inputs(70, 131)
    mask = np.random.default_rng(0).standard_normal((2, 1, 70, 131)).astype(np.float32)
    check(executable.run([*arrays, mask], 2)[0], arrays, (128, 131, 128), mask)


@pytest.mark.skipif(not _has_vnni(), reason="the processor does not multiply four bytes at a time")
@pytest.mark.parametrize(
    ("change", "is_integer"),
    [
        ({}, True),
        ({"zeros": (127, 128, 128)}, False),
        ({"zeros": (128, 128, 127)}, False),
        ({"rows": 15}, False),
        ({"size": 18}, False),
        ({"vector": True}, False),
        ({"present": True}, False),
        ({"softcap": True}, False),
    ],
    ids=str,
)
def test_what_multiplies_bytes(change: dict[str, object], is_integer: bool, tmp_path: Path) -> None:
    """Every precondition: without it the result is right, by the float32 kernel."""
    rows, size = change.get("rows", 16), change.get("size", 16)
    text, numbers = graph([f"2,4,{rows},{size}"] * 4, change.get("zeros", (128, 128, 128)))  # type: ignore[arg-type]
    if change.get("vector"):
        numbers["ks"] = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
        numbers["kz"] = np.full(4, 128, np.uint8)
        text = text.replace("kd = DequantizeLinear", "kd = DequantizeLinear<axis = 1>")
    if change.get("softcap"):
        text = text.replace("y = Attention", "y = Attention<softcap = 5.0>")
    if change.get("present"):
        shape = f"2,4,{rows},{size}"
        text = text.replace(" y) {", f" y, float[{shape}] a, float[{shape}] b) {{").replace(
            "y = Attention(qd, kd, vd)", "y, a, b = Attention(qd, kd, vd)"
        )
    model = parse(text, numbers)
    rng = np.random.default_rng(1)
    arrays = [some_bytes(rng, "uint8", 2, 4, int(str(rows)), int(str(size))) for _ in "qkv"]
    executable = compiled(model)
    assert ("vpdpbusd" in instructions(executable, tmp_path)) == is_integer
    far = distance(executable.run(arrays, 2)[0], oracle(model, arrays)[0])
    assert far < 0.02 if is_integer else far < 1e-5
