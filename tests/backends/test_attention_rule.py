"""Attention in one pass: every mask, static and symbolic sizes, sizes that fill no vector, and no matrix of scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.executable import Executable
from optimizer.reference import run_reference
from tests.backends.running import compiled, distance, parse

Array = npt.NDArray[Any]


def model(
    heads: int, key_heads: int, size: int, mask: str = "", attributes: str = "", sizes: tuple[int, int] | None = None
) -> Executable:
    """Attention of packed heads, [B, S, H * D], for any B, S and T, or for one S and T."""
    rows, keys = ("s", "t") if sizes is None else sizes
    query, key = heads * size, key_heads * size
    declared = f", {mask} m" if mask else ""
    given_mask = ", m" if mask else ""
    return compiled(
        parse(
            f"""g (float[b,{rows},{query}] q, float[b,{keys},{key}] k, float[b,{keys},{key}] v{declared})
            => (float[b,{rows},{query}] y) {{
            y = Attention<q_num_heads = {heads}, kv_num_heads = {key_heads}{attributes}>(q, k, v{given_mask}) }}"""
        )
    )


def expected(arrays: Sequence[Array], heads: int, key_heads: int, bias: Array | float = 0.0) -> Array:
    """In float64, with the matrix of scores; a row that sees nothing gives zero."""
    q, k, v = arrays
    batch, rows, hidden = q.shape
    size = hidden // heads
    split = [x.astype(np.float64).reshape(batch, -1, n, size) for x, n in ((q, heads), (k, key_heads), (v, key_heads))]
    query, key, value = (x.transpose(0, 2, 1, 3) for x in split)
    key, value = (np.repeat(x, heads // key_heads, axis=1) for x in (key, value))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(size) + bias
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e300))
    total = powers.sum(-1, keepdims=True)
    shares = np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)
    result: Array = (shares @ value).transpose(0, 2, 1, 3).reshape(batch, rows, hidden)
    return result


def inputs(batch: int, rows: int, keys: int, heads: int, key_heads: int, size: int) -> list[Array]:
    rng = np.random.default_rng(rows * 1000 + keys)
    shapes = ((batch, rows, heads * size), (batch, keys, key_heads * size), (batch, keys, key_heads * size))
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def check(executable: Executable, arrays: list[Array], wanted: Array, *more: Array) -> None:
    (found,) = executable.run([*arrays, *more], 2)
    assert distance(found, wanted.astype(np.float32)) <= 1e-5


@pytest.mark.parametrize("sizes", [(128, 128), (197, 197), (64, 33), (37, 53), (5, 300), (65, 1)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_sizes(sizes: tuple[int, int], symbolic: bool) -> None:
    arrays = inputs(2, *sizes, 4, 2, 24)
    executable = model(4, 2, 24, sizes=None if symbolic else sizes)
    check(executable, arrays, expected(arrays, 4, 2))


SHARED = {"any": model(2, 1, 16)}
"""Compiled once: the sizes are symbolic."""


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2), st.integers(1, 140), st.integers(1, 140))
def test_one_kernel_for_all_sizes(batch: int, rows: int, keys: int) -> None:
    arrays = inputs(batch, rows, keys, 2, 1, 16)
    check(SHARED["any"], arrays, expected(arrays, 2, 1))


@pytest.mark.parametrize("size", [1, 8, 16, 20, 64, 80])
def test_heads_of_any_size(size: int) -> None:
    arrays = inputs(1, 40, 70, 2, 2, size)
    check(model(2, 2, size), arrays, expected(arrays, 2, 2))


def forbidden(condition: npt.NDArray[np.bool_]) -> Array:
    return np.where(condition, 0.0, -np.inf)


@pytest.mark.parametrize("sizes", [(150, 150), (70, 200), (200, 70)])
@pytest.mark.parametrize("symbolic", [False, True])
def test_causal(sizes: tuple[int, int], symbolic: bool) -> None:
    arrays = inputs(1, *sizes, 2, 2, 16)
    row, key = np.arange(sizes[0])[:, None], np.arange(sizes[1])
    executable = model(2, 2, 16, attributes=", is_causal = 1", sizes=None if symbolic else sizes)
    check(executable, arrays, expected(arrays, 2, 2, forbidden(key <= row)))


def test_additive_mask() -> None:
    arrays = inputs(2, 70, 90, 2, 1, 16)
    mask = np.random.default_rng(3).standard_normal((2, 1, 70, 90), dtype=np.float32)
    check(model(2, 1, 16, "float[b,1,s,t]"), arrays, expected(arrays, 2, 1, mask), mask)


def test_boolean_mask_and_rows_that_see_nothing() -> None:
    arrays = inputs(2, 70, 90, 2, 2, 16)
    mask = np.random.default_rng(3).random((70, 90)) < 0.5
    mask[[0, 17, 69]] = False
    wanted = expected(arrays, 2, 2, forbidden(mask))
    assert not wanted[:, 17].any()
    check(model(2, 2, 16, "bool[s,t]"), arrays, wanted, mask)


def test_keys_that_are_seen_late_and_are_far_below_zero() -> None:
    """Nothing is seen in the first blocks, and then scores of -100: no exponent may be taken from 0."""
    arrays = inputs(1, 64, 400, 1, 1, 16)
    mask = np.full((64, 400), -np.inf, np.float32)
    mask[:, 390:] = -100
    check(model(1, 1, 16, "float[s,t]"), arrays, expected(arrays, 1, 1, mask), mask)


def test_not_a_number_stays_where_it_belongs() -> None:
    q, k, v = inputs(1, 40, 50, 1, 1, 16)
    q[0, 3, 5] = np.nan
    (found,) = model(1, 1, 16).run([q, k, v], 2)
    assert np.isnan(found[0, 3]).all()
    assert np.isfinite(np.delete(found[0], 3, axis=0)).all()


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3", "cpu:generic"])
@pytest.mark.parametrize("few", [False, True])
def test_exponentials(few: bool, target: str) -> None:
    """Two keys, of which one counts 1 and the other e**x: the second's share, by values 0 and 1."""
    x = np.concatenate([np.linspace(-100, 0, 40001), [-np.inf, -87.0, -86.9999, -1e30, np.nan]]).astype(np.float32)
    mask = np.stack([np.zeros_like(x), x], axis=1)[:, None, None]
    queries, values = np.zeros((len(x), 1, 1, 1), np.float32), np.zeros((len(x), 1, 2, 1), np.float32)
    values[:, :, 1] = 1
    arrays = [queries, np.zeros_like(values), values, mask]
    if not few:
        arrays = [mask[:, 0, 0].reshape(1, 1, -1, 2) if a is mask else a[:1] for a in arrays]
        arrays[0] = np.zeros((1, 1, len(x), 1), np.float32)
    text = """g (float[b,1,s,1] q, float[b,1,2,1] k, float[b,1,2,1] v, float[b,1,s,2] m) => (float[b,1,s,1] y) {
        y = Attention(q, k, v, m) }"""
    found = compiled(parse(text), target).run(arrays, 1)[0].reshape(-1)
    wanted = np.exp(x.astype(np.float64)) / (1 + np.exp(x.astype(np.float64)))
    assert np.abs(found - wanted)[:-1].max() < 2.0**-22
    assert found[-5] == 0
    assert np.isnan(found[-1])


def test_no_matrix_of_scores_is_kept() -> None:
    """8 heads of 4,096 queries and keys: the matrix would take 512 MB, inputs and outputs take 4 MB each."""
    arrays = inputs(1, 4096, 4096, 8, 8, 32)
    executable = model(8, 8, 32)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is used now
    before = _status("VmRSS")
    executable.run(arrays, 2)
    assert _status("VmHWM") - before < 64 * 2**20


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("target", ["cpu:x86-64", "cpu:x86-64-v3", "cpu:x86-64-v4"])
def test_every_vector_width_gives_the_same(target: str) -> None:
    arrays = inputs(1, 50, 70, 2, 2, 20)
    text = """g (float[b,s,40] q, float[b,t,40] k, float[b,t,40] v) => (float[b,s,40] y) {
        y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, k, v) }"""
    check(compiled(parse(text), target), arrays, expected(arrays, 2, 2))


@pytest.mark.parametrize("rows", [4, 33])
@pytest.mark.parametrize(
    ("behind", "shape"),
    [
        ("y = Relu(a)", "1,2,{rows},16"),
        ("r = Relu(a)  y = Transpose<perm = [0, 2, 1, 3]>(r)", "1,{rows},2,16"),
        ("t = Transpose<perm = [0, 2, 1, 3]>(a)  y = Relu(t)", "1,{rows},2,16"),
        ("c = QuantizeLinear(a, s, z)  t = Transpose<perm = [0, 2, 1, 3]>(c)  y = DequantizeLinear(t, s, z)",
         "1,{rows},2,16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float", "uint8"])
def test_what_follows_heads_that_stay_apart(dtype: str, behind: str, shape: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    scale: dict[str, Array] = {"s": np.array(0.02, np.float32), "z": np.array(128, np.uint8)}
    names = ("q", "k", "v")
    heads = ", ".join(f"{dtype}[1,2,{rows},16] {name}{'8' if dtype == 'uint8' else ''}" for name in names)
    opened = "".join(f"{n} = DequantizeLinear({n}8, s, z)  " for n in names) if dtype == "uint8" else ""
    text = f"g ({heads}) => (float[{shape.format(rows=rows)}] y) {{ {opened}a = Attention(q, k, v)  {behind} }}"
    values: list[Array] = [rng.standard_normal((1, 2, rows, 16), dtype=np.float32) for _ in names]
    if dtype == "uint8":
        values = [rng.integers(60, 200, x.shape).astype(np.uint8) for x in values]
    graph = parse(text, scale if "Dequantize" in text else {})
    found, wanted = compiled(graph).run(values, num_threads=1)[0], run_reference(ir.from_proto(graph), values)[0]
    allowed = 0.021 if "Quantize" in behind else 0.01 if dtype == "uint8" else 1e-5  # a step of the result; of weights
    assert np.abs(found - wanted).max() <= allowed * max(1.0, np.abs(wanted).max())
