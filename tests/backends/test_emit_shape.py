"""Shapes: what is known at compile time stays known, symbolic sizes included; the rest is refused with a reason."""

import numpy as np
import pytest

from optimizer.errors import UnsupportedError
from tests.backends.emitted import agrees, normal
from tests.backends.running import compiled, parse


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("target", "shape"), [([0, -1], "2,12"), ([-1, 0, 0], "2,3,4"), ([4, -1], "4,6"), ([0, 0, 2, 2], "2,3,2,2")]
)
def test_reshape_copies_and_completes(target: list[int], shape: str) -> None:
    model = parse(f"g (float[2,3,4] x) => (float[{shape}] y) {{ y = Reshape(x, s) }}", {"s": ints(*target)})
    agrees(model, [normal(2, 3, 4)])


def test_reshape_with_allowzero_is_empty() -> None:
    model = parse("g (float[0,3,4] x) => (float[3,4,0] y) { y = Reshape<allowzero=1>(x, s) }", {"s": ints(3, 4, 0)})
    agrees(model, [np.zeros((0, 3, 4), np.float32)])


@pytest.mark.parametrize("batch", [1, 5])
def test_shape_arithmetic_over_a_symbolic_size(batch: int) -> None:
    model = parse(
        "g (float[b,6,8] x) => (float[b,48] y, float[c,12] z, int64[1] n) { s = Shape(x) b1 = Gather(s, zero)"
        " t = Concat<axis=0>(b1, minus) y = Reshape(x, t) b4 = Mul(b1, four) u = Concat<axis=0>(b4, twelve)"
        " z = Reshape(x, u) h = Slice(s, one, three) m = ReduceProd<keepdims=1>(h) n = Div(m, seven) }",
        {
            "zero": ints(0),
            "minus": ints(-1),
            "four": ints(4),
            "twelve": ints(12),
            "one": ints(1),
            "three": ints(3),
            "seven": ints(7),
        },
    )
    agrees(model, [normal(batch, 6, 8)])


@pytest.mark.parametrize(("batch", "length"), [(2, 5), (1, 1), (3, 17)])
def test_a_reshape_completes_beside_a_symbolic_size_that_is_not_the_first(batch: int, length: int) -> None:
    model = parse(
        "g (float[b,4,n,6] x) => (float[m,n,6] y) { t = Shape<start=2>(x) s = Concat<axis=0>(minus, t)"
        " y = Reshape(x, s) }",
        {"minus": ints(-1)},
    )
    agrees(model, [normal(batch, 4, length, 6)])


@pytest.mark.parametrize("length", [3, 8, 33])
def test_a_size_divided_towards_zero_is_that_of_a_window(length: int) -> None:
    model = parse(
        "g (float[n,8,l] x) => (float[n,2,m,4] y) { p = MaxPool<kernel_shape=[3], strides=[2]>(x)"
        " t = Transpose<perm=[0,2,1]>(p) a = Shape<start=0, end=1>(x) s = Shape<start=2>(x) d = Sub(s, three)"
        " h = Div(d, two) b = Add(h, one) u = Concat<axis=0>(a, b, rest) v = Reshape(t, u)"
        " w = Transpose<perm=[0,2,1,3]>(v) y = Attention(w, w, w) }",
        {"one": ints(1), "two": ints(2), "three": ints(3), "rest": ints(-1, 4)},
    )
    agrees(model, [normal(2, 8, length)], rtol=1e-4)


def test_shapes_stay_known_beyond_a_fallback_partition() -> None:
    model = parse(
        "g (float[n,4] x, bool t) => (float[n,2,2] y) { s = Shape<start=0, end=1>(x) u = Concat<axis=0>(s, two)"
        " a = Exp(x) d = Dropout(a, r, t) y = Reshape(d, u) }",
        {"r": np.array(0.5, np.float32), "two": ints(2, 2)},
    )
    x = normal(3, 4)
    executable = compiled(model, fallback="onnxruntime")
    assert len(executable.notes) == 1
    np.testing.assert_allclose(executable.run([x, np.array(False)], 1)[0], np.exp(x).reshape(3, 2, 2), rtol=1e-6)


def test_a_reshape_to_a_computed_shape_is_refused() -> None:
    model = parse("g (float[2,3] x, int64[2] s) => (float[a,c] y) { y = Reshape(x, s) }")
    with pytest.raises(UnsupportedError, match="the shape is computed at run time"):
        compiled(model)


def test_flatten_squeeze_unsqueeze_with_negative_axes() -> None:
    model = parse(
        "g (float[2,1,3,1] x) => (float[2,3] a, float[2,3,1] b, float[1,2,1,3,1,1] c, float[2,1,3] s)"
        " { a = Flatten<axis=-2>(x) b = Squeeze(x, one) c = Unsqueeze(x, new) s = Squeeze(x, last) }",
        {"one": ints(1), "new": ints(0, -1), "last": ints(-1)},
    )
    agrees(model, [normal(2, 1, 3, 1)])


def test_expand_both_ways() -> None:
    model = parse(
        "g (float[3,1] x) => (float[2,3,4] y, float[3,4] z) { y = Expand(x, s) z = Expand(x, t) }",
        {"s": ints(2, 1, 4), "t": ints(1, 4)},
    )
    agrees(model, [normal(3, 1)])


@pytest.mark.parametrize(("start", "limit", "delta"), [(0, 10, 3), (10, 0, -3), (5, 5, 1), (0, -4, 1)])
def test_range_of_integers(start: int, limit: int, delta: int) -> None:
    scalars = {"a": np.array(start), "b": np.array(limit), "c": np.array(delta)}
    n = len(range(start, limit, delta))
    model = parse(f"g (int64[{n}] x) => (int64[{n}] y) {{ r = Range(a, b, c) y = Add(x, r) }}", scalars)
    agrees(model, [np.arange(n)])


def test_range_up_to_a_symbolic_size() -> None:
    model = parse(
        "g (float[n,3] x) => (int64[n] y)"
        " { s = Shape<start=0, end=1>(x) l = Squeeze(s, zero) y = Range(first, l, step) }",
        {"zero": ints(0), "first": np.array(0), "step": np.array(1)},
    )
    agrees(model, [normal(70, 3)])


def test_eye_like_off_the_diagonal() -> None:
    model = parse("g (float[3,5] x) => (int32[3,5] y) { y = EyeLike<k=1, dtype=6>(x) }")
    agrees(model, [normal(3, 5)])


def test_constant_of_a_symbolic_shape() -> None:
    model = parse(
        "g (float[n,3] x) => (float[n,3] y) { s = Shape(x) c = ConstantOfShape<value=float[1] {2.5}>(s) y = Add(x, c) }"
    )
    agrees(model, [normal(4, 3)])
