"""Operands that do not fit in the second-level cache: what stays there, what is asked for ahead, and right results."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.cpu.register_tile import LINE_ELEMENTS, asks_ahead, lines_ahead
from backends.cpu.tiles import Tiles
from backends.relax.loops import i64, known, simplify
from optimizer.target import CPUS
from tests.backends.running import check, parse

RNG = np.random.default_rng(11)


def normal(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.1).astype(np.float32)


@given(tiles=st.integers(0, 40), elements=st.integers(1, 96))
def test_all_tiles_together_ask_for_every_line(tiles: int, elements: int) -> None:
    asked = {known(simplify(e)) for t in range(max(1, tiles)) for e in lines_ahead(i64(t), tiles, elements)}
    assert asked == set(range(0, elements, LINE_ELEMENTS))


@given(tiles=st.integers(1, 80), elements=st.integers(1, 96), steps=st.integers(1, 40))
def test_all_tiles_together_ask_for_every_line_of_a_panel(tiles: int, elements: int, steps: int) -> None:
    width = -(-elements // LINE_ELEMENTS) * LINE_ELEMENTS
    asked = [
        known(simplify(place(i64(k))))
        for t in range(tiles)
        for k in range(steps)
        for place in asks_ahead(i64(t), tiles, width, steps)
    ]
    assert set(asked) >= set(range(0, steps * width, LINE_ELEMENTS))
    if tiles * LINE_ELEMENTS >= width:
        assert len(asked) == tiles * steps  # one in each step


def test_a_tile_of_symbolically_many_asks_for_one_line() -> None:
    assert [known(simplify(e)) for e in lines_ahead(i64(1), None, 48)] == [LINE_ELEMENTS]
    assert [known(simplify(e)) for e in lines_ahead(i64(9), None, 48)] == [2 * LINE_ELEMENTS]


def test_what_fits_in_the_second_level_cache_is_not_streamed() -> None:
    tiles = Tiles(CPUS["x86-64-v4"])
    assert not tiles.streamed(tiles.cpu.l2_bytes // 4, 128)
    assert tiles.streamed(tiles.cpu.l2_bytes // 4 + 1, 128)


def test_while_many_rows_pass_the_processor_fetches_by_itself() -> None:
    tiles = Tiles(CPUS["x86-64-v4"])
    assert tiles.streamed(tiles.cpu.l2_bytes, None)
    assert not tiles.streamed(tiles.cpu.l2_bytes, 4096)


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3"])
@pytest.mark.parametrize(("size", "stride", "group"), [(7, 1, 1), (9, 2, 1), (30, 2, 1), (7, 1, 2)])
def test_large_filters(size: int, stride: int, group: int, target: str) -> None:
    text = f"""g (float[1,320,{size},{size}] x) => (float[1,320,h,w] y) {{
        y = Conv<pads=[1,1,1,1], strides=[{stride},{stride}], group={group}>(x, w) }}"""
    check(parse(text, {"w": normal(320, 320 // group, 3, 3)}), [normal(1, 320, size, size)], target)


@pytest.mark.parametrize("target", ["cpu", "cpu:x86-64-v3"])
@pytest.mark.parametrize("declared", ["", "n"])
@pytest.mark.parametrize("rows", [1, 5, 49, 130, 401])
def test_large_matrices(rows: int, declared: str, target: str) -> None:
    text = f"g (float[{declared or rows},700] a) => (float[{declared or rows},800] y) {{ y = MatMul(a, b) }}"
    check(parse(text, {"b": normal(700, 800)}), [normal(rows, 700)], target)


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 64), depth=st.integers(500, 2300), width=st.integers(300, 1100))
@example(rows=16, depth=700, width=800)  # one whole tile for two tasks
def test_few_rows_of_large_matrices(rows: int, depth: int, width: int) -> None:
    text = f"g (float[{rows},{depth}] a) => (float[{rows},{width}] y) {{ y = MatMul(a, b) }}"
    check(parse(text, {"b": normal(depth, width)}), [normal(rows, depth)], "cpu")


@given(rows=st.integers(1, 10_000), depth=st.integers(1, 10_000), width=st.sampled_from([16, 48, 64]))
def test_blocks_of_rows_stay_in_the_second_level_cache(rows: int, depth: int, width: int) -> None:
    tiles = Tiles(CPUS["x86-64-v4"])
    blocks = tiles.row_blocks(i64(rows), depth, width)
    if blocks is None:
        assert rows * depth * 4 < tiles.cpu.l2_bytes or width * depth * 8 > tiles.cpu.l2_bytes
    else:
        assert -(-rows // (known(blocks) or 0)) * depth * 4 < tiles.cpu.l2_bytes


def test_rows_are_cut_into_blocks_only_where_less_moves() -> None:
    tiles = Tiles(CPUS["x86-64-v4"])
    assert known(tiles.row_blocks(i64(4096), 384, 48) or 0) == 11
    assert tiles.row_blocks(i64(300), 384, 48) is None  # all rows stay
    assert tiles.row_blocks(i64(4096), 8192, 48) is None  # a panel is more than the rows that would fit
    assert tiles.row_blocks(i64(4096), None, 48) is None
