"""What is only copied lies where it belongs, and no kernel runs for it; the results stay right."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from optimizer.executable import Executable
from tests.backends.emitted import normal
from tests.backends.running import check, parse

WEIGHTS = {"w": normal(16, 16, 3, 3) / 12, "m": normal(16, 16) / 4}
ROWS = 16 * 32 * 4
"""Bytes of a row of the images below, whose channels lie last."""


def bounds(*numbers: int) -> dict[str, np.ndarray]:
    """`s0`, `e0`, `s1`, `e1`: where two ranges begin and end; `ax`: the axis of the rows."""
    names = ("s0", "e0", "s1", "e1")
    return {name: np.array([number]) for name, number in zip(names, numbers, strict=True)} | {"ax": np.array([2])}


def run(body: str, more: dict[str, np.ndarray], outputs: str = "float[1,16,32,32] y", images: int = 1) -> Executable:
    text = f"g (float[{images},16,32,32] x) => ({outputs}) {{ {body} }}"
    used = {
        name: array
        for name, array in {**WEIGHTS, **more}.items()
        if name in text.replace(",", " ").replace(")", " ").split()
    }
    return check(parse(text, used), [normal(images, 16, 32, 32)])


def plan(executable: Executable) -> dict[str, Any]:
    steps: Any = executable.manifest()["steps"]
    memory: dict[str, Any] = steps[0]["memory"]
    return memory


def copying(executable: Executable) -> list[str]:
    return [name for name in plan(executable)["kernels"] if "concatenate" in name or "slice" in name]


def places(executable: Executable) -> list[tuple[int, int, int]]:
    """Slot, offset and rows of each buffer that is a part, and of what parts lie in."""
    buffers = plan(executable)["buffers"]
    parted = {buffer["slot"] for buffer in buffers if buffer["offset"]}
    return [(b["slot"], b["offset"], b["shape"][1]) for b in buffers if b["slot"] in parted]


HALVES = "p = Conv<pads=[1,1,0,1]>(a, w) q = Conv<pads=[0,1,1,1]>(b, w)"
CUT = "h = Conv<pads=[1,1,1,1]>(x, w) a = Slice(h, s0, e0, ax) b = Slice(h, s1, e1, ax)"
JOINED = "j = Concat<axis=2>(p, q) y = Conv<pads=[1,1,1,1]>(j, w)"
IN_HALVES = bounds(0, 17, 15, 32)


def test_pieces_are_cut_out_and_joined_without_copies() -> None:
    executable = run(f"{CUT} {HALVES} {JOINED}", IN_HALVES)
    assert not copying(executable)
    cut, joined = plan(executable)["buffers"][0]["slot"], plan(executable)["buffers"][-1]["slot"]
    found = places(executable)
    assert [place[1:] for place in found if place[0] == found[0][0]] == [(0, 32), (0, 17), (15 * ROWS, 17)]
    assert [place[1:] for place in found if place[0] == found[-1][0]] == [(0, 16), (16 * ROWS, 16), (0, 32)]
    assert cut != joined


def test_pieces_of_pieces() -> None:
    body = f"""{CUT} {HALVES} i = Concat<axis=2>(p, q) r = Conv<pads=[1,1,1,1]>(x, w) j = Concat<axis=2>(i, r)
        y = Conv<pads=[1,1,1,1]>(j, w)"""
    executable = run(body, IN_HALVES, "float[1,16,64,32] y")
    assert not copying(executable)
    assert {(offset, rows) for slot, offset, rows in places(executable) if rows in (16, 32, 64)} >= {
        (16 * ROWS, 16),
        (32 * ROWS, 32),
        (0, 64),
    }


@pytest.mark.parametrize(
    ("tail", "outputs"),
    [
        ("y = Concat<axis=2>(p, q)", "float[1,16,32,32] y"),  # what is returned is no part of the arena
        (f"{JOINED} z = Conv<pads=[1,1,1,1]>(p, u)", "float[1,16,32,32] y, float[1,16,16,32] z"),  # p is needed later
        ("j = Concat<axis=1>(p, q) y = Conv<pads=[1,1,1,1]>(j, v)", "float[1,16,16,32] y"),  # the channels lie last
    ],
)
def test_what_is_joined_by_a_kernel(tail: str, outputs: str) -> None:
    weights = {**IN_HALVES, "v": normal(16, 32, 3, 3) / 16, "u": normal(16, 16, 3, 3) / 12}
    executable = run(f"{CUT} {HALVES} {tail}", weights, outputs)
    assert [name for name in copying(executable) if "concatenate" in name]


def test_a_batch_is_not_one_range() -> None:
    executable = run(f"{CUT} {HALVES} {JOINED}", IN_HALVES, "float[2,16,32,32] y", images=2)
    assert len(copying(executable)) == 3


def test_ranges_that_do_not_begin_at_a_cache_line() -> None:
    """Kernels load whole vectors from where their operands begin."""
    text = """g (float[1,5,15,3] x) => (float[1,5,15,3] y) {
        h = Conv(x, w) a = Slice(h, s0, e0, ax) b = Slice(h, s1, e1, ax) p = Conv(a, w) q = Conv(b, w)
        j = Concat<axis=2>(p, q) y = Conv(j, w) }"""
    executable = check(parse(text, {"w": normal(5, 5, 1, 1), **bounds(0, 7, 7, 15)}), [normal(1, 5, 15, 3)])
    assert len(copying(executable)) >= 2


def test_a_small_part_does_not_keep_a_large_whole_alive() -> None:
    """The first two rows are needed at the end: with a copy of them the arena is shorter."""
    chain = " ".join(f"c{i + 1} = Conv<pads=[1,1,1,1]>(c{i}, w)" for i in range(3))
    executable = run(
        f"h = Conv<pads=[1,1,1,1]>(x, w) a = Slice(h, s0, e0, ax) c0 = Conv<pads=[1,1,1,1]>(h, w) {chain}"
        " d = Slice(c3, s0, e0, ax) s = Conv<pads=[1,1,1,1]>(a, w) y = Add(s, d)",
        bounds(0, 2, 0, 2),
        "float[1,16,2,32] y",
    )
    assert plan(executable)["bytes"] < 3 * 32 * ROWS


def test_nothing_is_written_over_what_a_part_is_read_from() -> None:
    """s could take the place of h, which dies there; but a is a part of h, and is read by the same kernel."""
    executable = run(
        "h = Conv<pads=[1,1,1,1]>(x, w) a = Slice(h, s0, e0, ax) s = Add(h, a) y = Conv<pads=[1,1,1,1]>(s, w)",
        bounds(5, 6, 0, 1),
    )
    buffers = plan(executable)["buffers"]
    assert buffers[-1]["slot"] != next(b["slot"] for b in buffers if b["shape"][1] == 32 and b is not buffers[-1])


@pytest.mark.parametrize("kept", [2, 1])
def test_rows_that_the_next_strip_needs_are_copied_and_the_others_are_not_kept(kept: int) -> None:
    """Two rows of the first strip, or a single one, are joined to the second one, which is written where it belongs."""
    body = f"""a = Slice(x, s0, e0, ax) h = Conv<pads=[1,1,0,1]>(a, w) p = Conv<pads=[1,1,0,1]>(h, w)
        t = Slice(h, s2, e2, ax) b = Slice(x, s1, e1, ax) n = Conv<pads=[0,1,{kept - 1},1]>(b, w)
        k = Concat<axis=2>(t, n) q = Conv<pads=[0,1,1,1]>(k, w) j = Concat<axis=2>(p, q)
        y = Conv<pads=[1,1,1,1]>(j, w)"""
    numbers = bounds(0, 18, 12 + 2 * kept, 32) | {"s2": np.array([17 - kept]), "e2": np.array([17])}
    executable = run(body, numbers)
    (rest,) = [name for name in copying(executable) if "concatenate" in name]
    assert "rest" in rest
    assert (kept * ROWS, 17 - kept) in [(offset, rows) for _, offset, rows in places(executable)]
    steps = [(slot["first"], slot["last"]) for slot in plan(executable)["slots"] if slot["bytes"] == 17 * ROWS]
    assert all(first > last for (_, last), (first, _) in pairwise(steps))
