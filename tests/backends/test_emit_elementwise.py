"""Element-wise operators: NaN, signed zeros, integer division, broadcasting, narrow floats."""

import ml_dtypes
import numpy as np
import onnx
import pytest

from optimizer.errors import ExecutionError, UnsupportedError
from tests.backends.emitted import agrees, emitted, normal
from tests.backends.running import compiled, parse

ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1.5, -2.5, 0.5, -3.0, 7.0], np.float32)


def test_nan_and_infinity_pass_through_selects() -> None:
    model = parse(
        "g (float[10] x, float[10] z) => (float[10] a, float[10] b, float[10] c, float[10] d, float[10] e, float[10] f)"
        " { a = Relu(x) b = Clip(x, low, high) c = Max(x, z) d = Min(z, x) e = LeakyRelu(x) f = Sign(x) }",
        {"low": np.array(-1, np.float32), "high": np.array(2, np.float32)},
    )
    agrees(model, [ODD, normal(10)])


def test_a_crossed_clip_gives_the_upper_bound() -> None:
    model = parse(
        "g (float[10] x) => (float[10] y) { y = Clip(x, low, high) }",
        {"low": np.array(2, np.float32), "high": np.array(1, np.float32)},
    )
    agrees(model, [ODD])


def test_a_clip_with_one_bound() -> None:
    model = parse(
        'g (float[4] x, float high) => (float[4] y, float[4] z) { y = Clip(x, "", high) z = Clip(x, high) }',
    )
    agrees(model, [np.array([-5, 0, 2, np.nan], np.float32), np.array(1, np.float32)])


def test_adding_and_multiplying_zero_are_not_no_ops() -> None:
    zero = np.zeros((), np.float32)
    model = parse(
        "g (float[10] x) => (float[10] s, float[10] p, float[10] q)"
        " { s = Add(x, zero) p = Mul(zero, x) q = Div(zero, x) }",
        {"zero": zero},
    )
    with np.errstate(all="ignore"):
        wanted = [ODD + zero, zero * ODD, zero / ODD]
    agrees(model, [ODD], wanted)
    for ours, theirs in zip(emitted(model, [ODD]), wanted, strict=True):
        known = ~np.isnan(theirs)
        assert np.array_equal(np.signbit(ours)[known], np.signbit(theirs)[known])


def test_sums_are_not_rearranged() -> None:
    model = parse(
        "g (float[8] x, float[8] z) => (float[8] lost, float[8] none, float[8] back)"
        " { s = Add(x, z) lost = Sub(s, x) d = Mul(x, z) none = Sub(d, d) back = Sub(s, s) }"
    )
    x = np.array([1e8, 1, np.inf, -np.inf, np.nan, 3, 1e-8, 0], np.float32)
    agrees(model, [x, np.array([1, 1e8, 1, 1, 1, 0.1, 1, 0], np.float32)], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["int32", "int64", "int8"])
def test_integer_division_truncates_and_never_traps(dtype: str) -> None:
    smallest = np.iinfo(dtype).min
    a = np.array([-7, 7, -8, 8, smallest, 5], dtype)
    b = np.array([2, -2, 3, -3, -1, 0], dtype)
    model = parse(f"g ({dtype}[6] a, {dtype}[6] b) => ({dtype}[6] y) {{ y = Div(a, b) }}")
    assert emitted(model, [a, b])[0][:4].tolist() == [-3, -3, -2, -2]


@pytest.mark.parametrize("size", ["6", "n"])
@pytest.mark.parametrize("divisor", [3, -3])
def test_division_by_a_constant_truncates(divisor: int, size: str) -> None:
    a = np.array([-7, 7, -9, 9, -1, 1], np.int64)
    model = parse(f"g (int64[{size}] a) => (int64[{size}] y) {{ y = Div(a, b) }}", {"b": np.array(divisor)})
    assert emitted(model, [a])[0].tolist() == [int(v / divisor) for v in a]


@pytest.mark.parametrize("dtype", ["int32", "uint8", "float"])
@pytest.mark.parametrize("fmod", [0, 1])
def test_modulo_has_the_sign_it_should(dtype: str, fmod: int) -> None:
    numpy_type = np.float32 if dtype == "float" else np.dtype(dtype)
    a = np.array([-7, 7, -7, 7, 6, -6], np.float64).astype(np.int64).astype(numpy_type)
    b = np.array([3, -3, -3, 3, 3, 3], np.int64).astype(numpy_type)
    model = parse(f"g ({dtype}[6] a, {dtype}[6] b) => ({dtype}[6] y) {{ y = Mod<fmod={fmod}>(a, b) }}")
    agrees(model, [a, b], [np.fmod(a, b) if fmod else np.mod(a, b)])


def test_power_of_mixed_types() -> None:
    model = parse(
        "g (float[4] x, int64[4] n, int32[4] i, float[4] e) => (float[4] y, int32[4] z, float[4] s, float[4] r)"
        " { y = Pow(x, n) z = Pow(i, e) s = Pow(x, two) r = Pow(e, half) }",
        {"two": np.array(2, np.int32), "half": np.array(0.5, np.float32)},
    )
    x, n = np.array([-2, 0.5, 3, 0], np.float32), np.array([3, -2, 0, 0])
    agrees(model, [x, n, np.array([2, 3, -2, 5], np.int32), np.array([2.0, 1.0, 3.0, 0.5], np.float32)])


def test_halves_round_to_even() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 2.4999998, np.nan, 3e9], np.float32)
    agrees(parse("g (float[9] x) => (float[9] y) { y = Round(x) }"), [x])


TAILS = np.array([-100, -20, -5, -1e-3, 0, 1e-3, 3, 20, 100, np.inf, -np.inf, np.nan], np.float32)


def activations(*ops: str) -> onnx.ModelProto:
    outputs = ", ".join(f"float[12] y{i}" for i in range(len(ops)))
    return parse(f"g (float[12] x) => ({outputs}) {{ {' '.join(f'y{i} = {op}(x)' for i, op in enumerate(ops))} }}")


def softplus(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0))


@np.errstate(all="ignore")
def test_the_tails_of_activations_keep_their_precision() -> None:
    x = TAILS.astype(np.float64)
    wanted = [softplus(x), 1 / (1 + np.exp(-x)), x * np.tanh(softplus(x)), x / (1 + np.abs(x)), np.tanh(x)]
    model = activations("Softplus", "Sigmoid", "Mish", "Softsign", "Tanh")
    agrees(model, [TAILS], [w.astype(np.float32) for w in wanted], rtol=2e-6, atol=1e-38)


@np.errstate(all="ignore")
def test_activations_in_pieces() -> None:
    x = TAILS.astype(np.float64)
    curved = np.exp(np.minimum(x, 0)) - 1
    wanted = [
        np.where(x < 0, curved, x),
        1.0507009873554805 * np.where(x < 0, 1.6732632423543772 * curved, x),
        np.where(x < 0, curved, x),
        np.clip(0.2 * x + 0.5, 0, 1),
        x * np.clip(x / 6 + 0.5, 0, 1),
        np.where(x > 1, x, np.where(np.isnan(x), 0, 0)),
    ]
    model = activations("Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "ThresholdedRelu")
    agrees(model, [TAILS], [w.astype(np.float32) for w in wanted], rtol=1e-6, atol=2e-7)


def test_hyperbolic_functions_near_zero_and_at_the_limit() -> None:
    x = np.array([0, -0.0, 1e-6, -1e-3, 0.5, 1.0, -2, 89.0, -89.0, 100, -100, np.nan], np.float32)
    model = parse("g (float[12] x) => (float[12] s, float[12] c) { s = Sinh(x) c = Cosh(x) }")
    with np.errstate(over="ignore"):
        wanted = [f(x.astype(np.float64)).astype(np.float32) for f in (np.sinh, np.cosh)]
    agrees(model, [x], wanted, rtol=1e-5, atol=0)


def test_shifts_beyond_the_width() -> None:
    a, b = np.array([-16, 16, -16, -1, 3], np.int32), np.array([2, 2, 40, 31, -1], np.int32)
    model = parse(
        'g (int32[5] a, int32[5] b) => (int32[5] l, int32[5] r) { l = BitShift<direction="LEFT">(a, b)'
        ' r = BitShift<direction="RIGHT">(a, b) }',
        opset=26,
    )
    left, right = emitted(model, [a, b])
    assert left.tolist() == [-64, 64, 0, -(2**31), 0]
    assert right.tolist() == [-4, 4, -1, -1, 0]


def test_small_integers_wrap() -> None:
    a, b = np.array([250, 3], np.uint8), np.array([10, 5], np.uint8)
    model = parse("g (uint8[2] a, uint8[2] b) => (uint8[2] s, uint8[2] d) { s = Add(a, b) d = Sub(a, b) }")
    agrees(model, [a, b], [a + b, a - b])


@pytest.mark.parametrize(("name", "bits"), [("float16", 11), ("bfloat16", 8)])
def test_half_precision_is_rounded_to_its_own(name: str, bits: int) -> None:
    dtype = np.dtype(np.float16 if name == "float16" else ml_dtypes.bfloat16)
    model = parse(f"g ({name}[64] x, {name}[64] z) => ({name}[64] y) {{ t = Mul(x, z) y = Add(t, x) }}")
    x, z = normal(64).astype(dtype), normal(64).astype(dtype)
    terms = x.astype(np.float32) * z.astype(np.float32), x.astype(np.float32)
    error = np.abs(emitted(model, [x, z])[0].astype(np.float32) - sum(terms))
    assert np.all(error <= 2.0**-bits * (np.abs(terms[0]) * 2 + np.abs(terms[1])))


def test_broadcasting_by_rank_and_size() -> None:
    model = parse(
        "g (float[2,1,4] x, float[3,1] z, float s) => (float[2,3,4] y, float[2,1,4] w) { t = Add(x, z) y = Mul(t, s)"
        " w = Sub(s, x) }"
    )
    agrees(model, [normal(2, 1, 4), normal(3, 1), np.array(2.5, np.float32)])


def test_symbolic_sizes_broadcast_against_one() -> None:
    model = parse("g (float[n,4] x, float[1,4] z, float[n,1] c) => (float[n,4] y) { t = Add(x, z) y = Mul(t, c) }")
    agrees(model, [normal(5, 4), normal(1, 4), normal(5, 1)])


TWO_SIZES = """g (float[n,4] x, float[m,4] z, float[m,1] c) => (float[p,4] y, float[p,4] u) {
    a = Add(x, z) b = Mul(a, c) y = Relu(b) u = Sub(c, y) }"""


@pytest.mark.parametrize("sizes", [(5, 5, 5), (1, 5, 5), (5, 1, 1), (1, 1, 1), (0, 1, 1), (1, 0, 0), (0, 0, 0)])
def test_which_of_two_symbolic_sizes_is_one_is_seen_by_the_run(sizes: tuple[int, int, int]) -> None:
    n, m, k = sizes
    agrees(parse(TWO_SIZES), [normal(n, 4), normal(m, 4), normal(k, 1)])


@pytest.mark.parametrize("sizes", [(5, 4, 4), (2, 3, 3), (0, 2, 2)])
def test_two_symbolic_sizes_that_do_not_broadcast_are_an_error(sizes: tuple[int, int, int]) -> None:
    n, m, k = sizes
    with pytest.raises(ExecutionError, match="sizes that are broadcast"):
        compiled(parse(TWO_SIZES)).run([normal(n, 4), normal(m, 4), normal(k, 1)], 1)


@pytest.mark.parametrize("sizes", [(6, 6), (1, 6), (6, 1)])
def test_channels_last_operands_of_two_symbolic_sizes(sizes: tuple[int, int]) -> None:
    text = """g (float[1,8,n,7] x, float[1,8,m,7] z) => (float[1,8,p,7] y) {
        a = Conv(x, w) b = Conv(z, w) c = Add(a, b) y = Relu(c) }"""
    graph = parse(text, {"w": normal(8, 8, 1, 1)})
    agrees(graph, [normal(1, 8, sizes[0], 7), normal(1, 8, sizes[1], 7)])


def test_a_training_dropout_is_refused() -> None:
    model = parse("g (float[4] x, bool t) => (float[4] y) { y = Dropout(x, r, t) }", {"r": np.array(0.5, np.float32)})
    with pytest.raises(UnsupportedError, match="training_mode is computed at run time"):
        compiled(model)
