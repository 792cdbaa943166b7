"""Products with long sums, whose reduced axis is cut into blocks: the cut itself, and right results with every rest."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.cpu.matmul import Cut
from backends.cpu.tiles import Tiles
from optimizer.target import CPUS
from tests.backends.running import check, compiled, distance, parse

RNG = np.random.default_rng(17)
KINDS = ("generic", "x86-64-v3", "x86-64-v4", "znver5", "neoverse-n1")


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.1).astype(np.float32)


@given(
    kind=st.sampled_from(KINDS),
    rows=st.none() | st.integers(1, 5_000),
    columns=st.integers(1, 60_000),
    steps=st.integers(1, 20_000),
)
def test_a_cut_covers_everything_once_and_stays_in_the_caches(
    kind: str, rows: int | None, columns: int, steps: int
) -> None:
    tiles = Tiles(CPUS[kind])
    width = tiles.panel_width(rows, columns, steps)
    cut = Cut.of(tiles, rows, columns, steps, width)
    if cut is None:
        panel = steps * width * 4
        fits = rows is not None and (rows < 32 or panel + 4 * steps * rows <= 0.7 * tiles.cpu.l2_bytes)
        assert fits or panel <= tiles.cpu.l2_bytes / 3
        return
    assert cut.blocks > 1 and cut.depth * (cut.blocks - 1) < steps <= cut.depth * cut.blocks
    panels = -(-columns // width)
    assert cut.panels * (cut.groups - 1) < panels <= cut.panels * cut.groups
    most = tiles.tile_rows(rows, width // tiles.lanes())
    assert cut.rows % most == 0
    held = 4 * cut.depth * (width + max(cut.rows - most, 0))
    assert held <= tiles.cpu.l2_bytes
    assert cut.panels == 1 or 4 * cut.panels * cut.rows * width <= tiles.cpu.l2_bytes


def test_short_sums_and_few_rows_stay_whole() -> None:
    tiles = Tiles(CPUS["znver5"])
    assert Cut.of(tiles, 128, 3072, 768, 96) is None
    assert Cut.of(tiles, 8, 768, 3072, 96) is None
    assert Cut.of(tiles, 49, 192, 1152, 96) is None  # all rows stay beside a panel
    assert Cut.of(tiles, 128, 768, 3072, 96) is not None


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:generic"])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(33, 2050, 200), (130, 1537, 100), (290, 3100, 17), (64, 4096, 7)]
)
def test_any_rest_agrees_with_what_follows(target: str, rows: int, depth: int, columns: int) -> None:
    text = f"""g (float[{rows},{depth}] a, float[{rows},{columns}] r) => (float[{rows},{columns}] y) {{
        m = MatMul(a, b) t = Add(m, c) u = Relu(t) y = Add(u, r) }}"""
    model = parse(text, {"b": normal(depth, columns), "c": normal(columns)})
    check(model, [normal(rows, depth), normal(rows, columns)], target)


@pytest.mark.parametrize("rows", [1, 5, 64, 129, 300])
def test_symbolic_rows_agree(rows: int) -> None:
    text = "g (float[n,s,2100] a) => (float[n,s,210] y) { m = MatMul(a, b) y = Gelu(m) }"
    executable = compiled(parse(text, {"b": normal(2100, 210)}))
    single = compiled(parse(text.replace("Gelu(m)", "Identity(m)"), {"b": np.eye(2100, 210, dtype=np.float32)}))
    a = normal(2, rows, 2100)
    assert distance(single.run([a], 2)[0], a[..., :210].copy()) <= 1e-6
    check(parse(text, {"b": normal(2100, 210)}), [a])
    assert executable.run([a], 1)[0].tobytes() == executable.run([a], 2)[0].tobytes()


def test_a_constant_for_each_of_a_batch_agrees() -> None:
    text = "g (float[3,40,2060] a) => (float[3,40,50] y) { y = MatMul(a, b) }"
    check(parse(text, {"b": normal(3, 2060, 50)}), [normal(3, 40, 2060)])


@pytest.mark.parametrize("depth", [4096, 4099])
def test_pairs_of_bfloat16_agree_with_sums_of_rounded_factors(depth: int) -> None:
    a, b = (normal(*shape).astype(ml_dtypes.bfloat16) for shape in ((70, depth), (depth, 90)))
    text = f"g (bfloat16[70,{depth}] a) => (bfloat16[70,90] y) {{ y = MatMul(a, b) }}"
    result = compiled(parse(text, {"b": b})).run([a], 2)[0].astype(np.float64)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert np.linalg.norm(result - exact) / np.linalg.norm(exact) < 2.0**-8


@pytest.mark.parametrize("depth", [8192, 8195])
def test_sums_of_bytes_are_exact(depth: int) -> None:
    a = RNG.integers(0, 255, (70, depth)).astype(np.uint8)
    b = RNG.integers(-127, 127, (depth, 90)).astype(np.int8)
    text = f"g (uint8[70,{depth}] a) => (int32[70,90] y) {{ y = MatMulInteger(a, b) }}"
    result = compiled(parse(text, {"b": b})).run([a], 2)[0]
    assert (result == a.astype(np.int32) @ b.astype(np.int32)).all()
