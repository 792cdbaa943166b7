"""Quantization: rounding, saturation, axes and blocks; integer products with zero points."""

import ml_dtypes
import numpy as np
import pytest

from tests.backends.emitted import agrees, emitted, normal
from tests.backends.running import check, parse


def test_quantization_rounds_halves_to_even_and_saturates() -> None:
    model = parse(
        "g (float[9] x) => (uint8[9] y, int8[9] z) { y = QuantizeLinear(x, s, u) z = QuantizeLinear(x, s, i) }",
        {"s": np.array(2, np.float32), "u": np.array(128, np.uint8), "i": np.array(-3, np.int8)},
    )
    agrees(model, [np.array([0, 1, 3, 5, -1, -3, 1e6, -1e6, 253], np.float32)])


@pytest.mark.parametrize("axis", [1, -1])
def test_quantization_along_an_axis_and_back(axis: int) -> None:
    count = 3 if axis == 1 else 4
    parameters: dict[str, np.ndarray] = {
        "s": np.linspace(0.1, 0.7, count).astype(np.float32),
        "z": np.arange(count, dtype=np.uint8) + 100,
    }
    model = parse(
        f"g (float[2,3,4] x) => (uint8[2,3,4] y, float[2,3,4] w) {{ y = QuantizeLinear<axis={axis}>(x, s, z)"
        f" w = DequantizeLinear<axis={axis}>(y, s, z) }}",
        parameters,
    )
    agrees(model, [normal(2, 3, 4) * 10])


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_with_a_shorter_last_one(axis: int) -> None:
    shape = (2, 5) if axis == 0 else (4, 3)
    rng = np.random.default_rng(2)
    x = rng.integers(-8, 8, (4, 5)).astype(ml_dtypes.int4)
    scale = rng.uniform(0.5, 2, shape).astype(np.float32)
    zero = rng.integers(-8, 8, shape).astype(ml_dtypes.int4)
    model = parse(
        f"g (int4[4,5] x) => (float[4,5] y) {{ y = DequantizeLinear<axis={axis}, block_size=2>(x, s, z) }}",
        {"s": scale, "z": zero},
    )
    wide_scale, wide_zero = (np.repeat(v.astype(np.float32), 2, axis)[:4, :5] for v in (scale, zero))
    agrees(model, [x], [(x.astype(np.float32) - wide_zero) * wide_scale])


def test_blocks_of_a_vector() -> None:
    x, scale = np.arange(-5, 5, dtype=np.int8), np.array([0.5, 2, 3], np.float32)
    model = parse(
        "g (int8[10] x) => (float[10] y, int8[10] z) { y = DequantizeLinear<axis=0, block_size=4>(x, s)"
        " z = QuantizeLinear<axis=0, block_size=4, output_dtype=3>(y, s) }",
        {"s": scale},
    )
    agrees(model, [x], [x * np.repeat(scale, 4)[:10], x])


def test_a_missing_zero_point_is_zero() -> None:
    model = parse("g (uint8[3] x) => (float[3] y) { y = DequantizeLinear(x, s) }", {"s": np.array(0.5, np.float32)})
    agrees(model, [np.array([0, 128, 255], np.uint8)])


def test_int4_and_float8_from_floats() -> None:
    model = parse(
        "g (float[5] x) => (int4[5] y, float8e4m3fn[5] z)"
        " { y = QuantizeLinear<output_dtype=22>(x, s) z = QuantizeLinear<output_dtype=17>(x, s) }",
        {"s": np.array(0.5, np.float32)},
    )
    x = np.array([0.25, 0.75, -100, 100, -0.6], np.float32)
    y, z = emitted(model, [x])
    assert y.astype(int).tolist() == [0, 2, -8, 7, -1]
    assert np.array_equal(z.astype(np.float32), (x / 0.5).astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_dynamic_quantization_includes_zero_in_the_range() -> None:
    model = parse("g (float[6] x) => (uint8[6] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }")
    agrees(model, [np.array([1, 2, 3, 4, 5, 6.5], np.float32)])
    agrees(model, [np.array([0, -2, -3, 4, 5, -6.5], np.float32)])


def test_integer_products_take_the_zero_points_off() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 256, (2, 5, 7), np.uint8), rng.integers(-128, 128, (7, 6), np.int8)
    model = parse(
        "g (uint8[2,5,7] a) => (int32[2,5,6] y) { y = MatMulInteger(a, b, za, zb) }",
        {"b": b, "za": np.array(131, np.uint8), "zb": rng.integers(-9, 9, 6, np.int8)},
    )
    check(model, [a])


@pytest.mark.parametrize("groups", [1, 2])
def test_a_quantized_convolution_pads_with_its_zero_point(groups: int) -> None:
    rng = np.random.default_rng(6)
    model = parse(
        f"g (uint8[1,4,6,6] x) => (uint8[1,6,4,3] y) {{ y = QLinearConv<pads=[1,1,2,1], strides=[2,2], dilations=[1,2],"
        f" group={groups}>(x, xs, xz, w, ws, wz, ys, yz, b) }}",
        {
            "xs": np.array(0.02, np.float32),
            "xz": np.array(128, np.uint8),
            "w": rng.integers(-128, 128, (6, 4 // groups, 3, 2), np.int8),
            "ws": rng.uniform(0.01, 0.03, 6).astype(np.float32),
            "wz": np.zeros(6, np.int8),
            "ys": np.array(0.05, np.float32),
            "yz": np.array(120, np.uint8),
            "b": rng.integers(-500, 500, 6).astype(np.int32),
        },
    )
    agrees(model, [rng.integers(0, 256, (1, 4, 6, 6), np.uint8)])


@pytest.mark.parametrize(("scale", "axis"), [((), 0), ((9,), 0), ((6,), 1)], ids=["one scale", "of rows", "of columns"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize("places", ["int64[2,3] i", "int64[n,3] i"])
def test_rows_of_a_table_of_bytes(scale: tuple[int, ...], axis: int, kind: str, places: str) -> None:
    rng = np.random.default_rng(4)
    p: dict[str, np.ndarray] = {
        "w": rng.integers(0, 128, (9, 6)).astype(kind),
        "s": rng.uniform(0.1, 1, scale).astype(np.float32),
        "z": np.full(scale, 5, kind),
    }
    model = parse(
        f"g ({places}) => (float[a,b,c] y) {{ t = DequantizeLinear<axis={axis}>(w, s, z) y = Gather(t, i) }}", p
    )
    agrees(model, [np.array([[0, 8, -1], [3, -9, 3]])])


def test_rows_of_a_table_with_zero_points_of_rows() -> None:
    p: dict[str, np.ndarray] = {
        "w": np.arange(54, dtype=np.uint8).reshape(9, 6),
        "s": np.linspace(0.1, 1, 9).astype(np.float32),
        "z": np.arange(9, dtype=np.uint8),
    }
    model = parse("g (int64[3] i) => (float[3,6] y) { t = DequantizeLinear<axis=0>(w, s, z) y = Gather(t, i) }", p)
    agrees(model, [np.array([0, 8, -1])])
