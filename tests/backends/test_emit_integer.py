"""MatMulInteger and ConvInteger with constant weights: integer sums, exact whatever the zero points are."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import te

from backends.relax.kernel import decode
from tests.backends.emitted import emitted, normal
from tests.backends.running import check, oracle, parse

RNG = np.random.default_rng(5)


def some_bytes(dtype: str, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max + 1, shape).astype(dtype)


def exact(text: str, weights: dict[str, np.ndarray], inputs: list[np.ndarray]) -> None:
    model = parse(text, weights)
    (expected,) = oracle(model, inputs)
    np.testing.assert_array_equal(emitted(model, inputs)[0], expected)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("weights", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("group", "attributes"),
    [
        (1, "pads=[1,0,2,1], strides=[2,1]"),
        (1, "dilations=[2,2]"),
        (2, "pads=[1,1,1,1]"),
        (8, "pads=[1,1,1,1]"),
    ],
)
def test_convolutions(group: int, attributes: str, weights: str, known: bool) -> None:
    """Of other than symmetric weights in groups the rules know nothing: the plain sum is exact, too."""
    zero = some_bytes("uint8")
    declared = "" if known else ", uint8 za"
    exact(
        f"g (uint8[2,8,h,w] x{declared}) => (int32[2,8,k,l] y) {{"
        f" y = ConvInteger<group={group}, {attributes}>(x, b, za, zb) }}",
        {
            "b": some_bytes(weights, 8, 8 // group, 3, 3),
            "zb": np.array(0 if weights == "int8" else 117, weights),
            **({"za": zero} if known else {}),
        },
        [some_bytes("uint8", 2, 8, 11, 13), *([] if known else [zero])],
    )


@pytest.mark.parametrize("kernel", [1, 3])
def test_one_axis(kernel: int) -> None:
    exact(
        "g (uint8[2,5,l] x, uint8 za) => (int32[2,6,k] y) { y = ConvInteger(x, b, za, zb) }",
        {"b": some_bytes("uint8", 6, 5, kernel), "zb": np.array(131, np.uint8)},
        [some_bytes("uint8", 2, 5, 19), some_bytes("uint8")],
    )


@pytest.mark.parametrize("each", [True, False])
@pytest.mark.parametrize(("left", "right"), [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
def test_products(left: str, right: str, each: bool) -> None:
    exact(
        f"g ({left}[b,s,37] x, {left} za) => (int32[b,s,50] y) {{ y = MatMulInteger(x, b, za, zb) }}",
        {"b": some_bytes(right, 37, 50), "zb": some_bytes(right, *([50] if each else []))},
        [some_bytes(left, 2, 5, 37), some_bytes(left)],
    )


def test_a_zero_point_for_each_row_is_left_to_the_plain_sum() -> None:
    model = parse(
        "g (uint8[4,7] x) => (int32[4,5] y) { y = MatMulInteger(x, b, za, zb) }",
        {"b": some_bytes("int8", 7, 5), "zb": np.array(0, np.int8), "za": some_bytes("uint8", 4)},
    )
    x = some_bytes("uint8", 4, 7)
    zeros, factors = (next(i for i in model.graph.initializer if i.name == name) for name in ("za", "b"))
    rows = np.frombuffer(zeros.raw_data, np.uint8).astype(np.int32)[:, None]
    matrix = np.frombuffer(factors.raw_data, np.int8).reshape(7, 5).astype(np.int32)
    np.testing.assert_array_equal(emitted(model, [x])[0], (x.astype(np.int32) - rows) @ matrix)


def test_what_a_dynamic_quantizer_writes() -> None:
    """The factor is one number that two make: the kernel has a stage without axes."""
    model = parse(
        "g (float[s,64] x) => (float[s,48] y) { q, sx, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z, zw)"
        " f = Cast<to=1>(i) both = Mul(sx, sw) m = Mul(f, both) y = Add(m, b) }",
        {
            "w": some_bytes("uint8", 64, 48),
            "zw": np.array(120, np.uint8),
            "sw": np.array(0.01, np.float32),
            "b": normal(48),
        },
    )
    check(model, [normal(7, 64)])


def test_a_stage_without_axes_is_one_of_a_kernel() -> None:
    a, b = te.placeholder((), "float32"), te.placeholder((4,), "float32")
    square = te.compute((), lambda: a() * a())
    kernel = decode(te.create_prim_func([a, b, te.compute((4,), lambda i: b(i) * square())]))
    assert kernel is not None
    assert [len(stage.axes) for stage in kernel.stages] == [0, 1]
