"""Data movement: negative steps, symbolic bounds, all ways to pad, and images that lie with their channels last."""

import numpy as np
import pytest

from tests.backends.emitted import agrees, normal
from tests.backends.running import check, parse


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("start", "end", "step", "size"),
    [
        (1, -1, 2, 4),
        (-1, -100, -1, 9),
        (-3, 2, -2, 2),
        (100, -4, -1, 3),
        (20, 30, 1, 0),
        (0, 2**63 - 1, 1, 9),
        (-1, -(2**63), -4, 3),
    ],
)
def test_slices_are_cut_to_the_axis(start: int, end: int, step: int, size: int) -> None:
    model = parse(
        f"g (float[2,9] x) => (float[2,{size}] y) {{ y = Slice(x, s, e, a, t) }}",
        {"s": ints(start), "e": ints(end), "a": ints(-1), "t": ints(step)},
    )
    agrees(model, [normal(2, 9)])


@pytest.mark.parametrize("length", [2, 7])
def test_slices_of_a_symbolic_axis(length: int) -> None:
    model = parse(
        "g (float[n,3] x) => (float[a,3] head, float[b,3] tail, float[n,3] back)"
        " { head = Slice(x, zero, five, axis) tail = Slice(x, minus, end, axis)"
        " back = Slice(x, last, far, axis, last) }",
        {
            "zero": ints(0),
            "five": ints(5),
            "axis": ints(0),
            "minus": ints(-4),
            "end": ints(2**31 - 1),
            "last": ints(-1),
            "far": ints(-(2**31)),
        },
    )
    agrees(model, [normal(length, 3)])


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_padding(mode: str) -> None:
    model = parse(
        f'g (float[3,3,4] x) => (float[4,5,7] y) {{ y = Pad<mode="{mode}">(x, p) }}', {"p": ints(1, 0, 2, 0, 2, 1)}
    )
    agrees(model, [normal(3, 3, 4)])


def test_negative_padding_and_a_value_from_an_input() -> None:
    model = parse(
        "g (float[4,5] x, float v) => (float[4,6] y) { y = Pad(x, p, v, a) }", {"p": ints(-1, 2), "a": ints(1)}
    )
    check(model, [normal(4, 5), np.array(3.5, np.float32)])


@pytest.mark.parametrize("order", [(0, 2, 1, 3), (3, 2, 1, 0), (0, 3, 1, 2), (0, 2, 3, 1), (0, 1, 2, 3)])
def test_transpose(order: tuple[int, ...]) -> None:
    sizes = ",".join(str((2, 3, 4, 5)[i]) for i in order)
    axes = ",".join(map(str, order))
    model = parse(f"g (float[2,3,4,5] x) => (float[{sizes}] y) {{ y = Transpose<perm=[{axes}]>(x) }}")
    agrees(model, [normal(2, 3, 4, 5)])


def test_split_with_a_smaller_rest_and_with_nothing() -> None:
    model = parse(
        "g (float[2,7] x) => (float[2,3] a, float[2,3] b, float[2,1] c, float[2,0] d, float[2,7] e)"
        " { a, b, c = Split<axis=1, num_outputs=3>(x) d, e = Split<axis=-1>(x, s) }",
        {"s": ints(0, 7)},
    )
    agrees(model, [normal(2, 7)])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    shape = np.concatenate([np.zeros((2, 3, 4))] * 3, axis).shape
    sizes = ",".join(map(str, shape))
    model = parse(f"g (float[2,3,4] x, float[2,3,4] z) => (float[{sizes}] y) {{ y = Concat<axis={axis}>(x, z, x) }}")
    agrees(model, [normal(2, 3, 4), normal(2, 3, 4)])


def test_tile_and_repeated_blocks() -> None:
    model = parse(
        "g (float[1,8,2,3] x) => (float[2,8,4,3] t, float[1,2,4,6] d, float[1,2,4,6] c, float[1,8,2,3] s)"
        ' { t = Tile(x, r) d = DepthToSpace<blocksize=2>(x) c = DepthToSpace<blocksize=2, mode="CRD">(x)'
        " s = SpaceToDepth<blocksize=2>(d) }",
        {"r": ints(2, 1, 2, 1)},
    )
    agrees(model, [normal(1, 8, 2, 3)])


def test_movement_after_a_convolution_works_on_its_layout() -> None:
    weight = normal(6, 3, 3, 3)
    model = parse(
        "g (float[1,3,8,8] x) => (float[1,12,6,6] c, float[1,2,3,6] s, float[1,6,8,7] p, float[1,6,6,6] n,"
        " float[1,6] f) { t = Conv(x, w) c = Concat<axis=1>(t, t) s = Slice(t, a, b, e, d) p = Pad(t, z)"
        " n = Transpose<perm=[0,2,3,1]>(t) g = ReduceMean<keepdims=1>(t, hw) f = Flatten(g) }",
        {
            "w": weight,
            "a": ints(1, 0),
            "b": ints(5, 6),
            "e": ints(1, 2),
            "d": ints(2, 2),
            "z": ints(0, 0, 1, 0, 0, 0, 1, 1),
            "hw": ints(2, 3),
        },
    )
    check(model, [normal(1, 3, 8, 8)])
