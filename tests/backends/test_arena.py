"""Offsets in an arena: nothing that lives at one time overlaps, and little is lost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.relax.arena import REPAIRS, Placement, most_alive, place, rounded
from backends.relax.packing import ALIGNMENT

Buffers = list[tuple[int, tuple[int, int]]]

BUFFERS = st.lists(
    st.tuples(st.integers(0, 5000), st.tuples(st.integers(0, 20), st.integers(0, 8)).map(lambda s: (s[0], sum(s)))),
    max_size=30,
)


def clashes(buffers: Buffers, placement: Placement) -> list[tuple[int, int]]:
    """Pairs of buffers that live at one time and share bytes."""
    found = []
    for i, (size, (first, last)) in enumerate(buffers):
        for j, (other, (start, end)) in enumerate(buffers[:i]):
            a, b = placement.offsets[i], placement.offsets[j]
            if first <= end and start <= last and a < b + other and b < a + size:
                found.append((i, j))
    return found


def placed(buffers: Buffers) -> Placement:
    return place([size for size, _ in buffers], [life for _, life in buffers])


@settings(max_examples=300, deadline=None)
@given(BUFFERS)
def test_nothing_that_lives_at_one_time_overlaps(buffers: Buffers) -> None:
    placement = placed(buffers)
    assert not clashes(buffers, placement)
    assert all(offset % ALIGNMENT == 0 for offset in placement.offsets)
    assert all(o + size <= placement.bytes for o, (size, _) in zip(placement.offsets, buffers, strict=True))
    least = most_alive([size for size, _ in buffers], [life for _, life in buffers])
    assert least <= placement.bytes <= sum(rounded(size) for size, _ in buffers)
    assert placed(buffers) == placement


@pytest.mark.parametrize(
    ("buffers", "wanted"),
    [
        ([], 0),
        ([(100, (0, 1)), (100, (1, 2)), (100, (2, 3))], 256),  # a chain: the first and the third share
        ([(64, (0, 9)), (128, (0, 1)), (128, (2, 3))], 192),
        ([(64, (0, 0)), (64, (1, 1))], 64),
    ],
)
def test_small_examples(buffers: Buffers, wanted: int) -> None:
    assert placed(buffers).bytes == wanted


def test_another_order_is_tried_where_the_largest_first_loses() -> None:
    """By size, the two of 3 are apart and 4 lies on top; by lifetime, what lives long lies at the bottom."""
    buffers = [(192, (0, 1)), (128, (1, 3)), (192, (3, 4)), (64, (0, 4)), (256, (2, 2))]
    sizes, lives = [size for size, _ in buffers], [life for _, life in buffers]
    assert placed(buffers).bytes == most_alive(sizes, lives)


@pytest.mark.parametrize(
    "buffers",
    [
        [(384, (2, 5)), (192, (4, 8)), (256, (6, 7)), (320, (2, 6)), (192, (6, 8))],
        [(128, (2, 3)), (384, (1, 2)), (320, (3, 4)), (128, (1, 1)), (320, (2, 3)), (256, (3, 5))],
    ],
)
def test_what_sticks_out_of_every_order_is_placed_first_in_a_repair(buffers: Buffers) -> None:
    sizes, lives = [size for size, _ in buffers], [life for _, life in buffers]
    least = most_alive(sizes, lives)
    assert place(sizes, lives).bytes > least
    repaired = place(sizes, lives, REPAIRS)
    assert repaired.bytes == least
    assert not clashes(buffers, repaired)


@settings(max_examples=100, deadline=None)
@given(BUFFERS)
def test_repairs_never_lose(buffers: Buffers) -> None:
    sizes, lives = [size for size, _ in buffers], [life for _, life in buffers]
    repaired = place(sizes, lives, REPAIRS)
    assert not clashes(buffers, repaired)
    assert repaired.bytes <= place(sizes, lives).bytes


def test_a_gap_is_the_smallest_that_fits() -> None:
    held = [(640, (0, 9)), (576, (0, 1)), (512, (0, 9)), (448, (0, 1)), (384, (0, 9))]
    placement = placed([*held, (320, (2, 9))])
    assert placement.offsets[5] == placement.offsets[3]


def test_ten_thousand_buffers_take_seconds() -> None:
    buffers = [(64 * (i % 13 + 1), (i, i + 1 + i % 5)) for i in range(10_000)]
    begin = time.process_time()
    placement = placed(buffers)
    assert time.process_time() - begin < 10
    assert placement.bytes < 2 * most_alive([size for size, _ in buffers], [life for _, life in buffers])
