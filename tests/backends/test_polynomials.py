"""The transcendental functions: accuracy over the whole range, and what IEEE says at its ends."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tvm import tirx

from backends.cpu.function_chains import nested_too_deep
from tests.backends.running import compiled, parse

SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 88.0, 88.7, 88.8, -87.5, -104.0, -200.0, 1e-38, 1e-45, 3e38],
    np.float32,
)


def run(op: str, x: np.ndarray) -> np.ndarray:
    return compiled(parse(f"g (float[n] x) => (float[n] y) {{ y = {op}(x) }}")).run([x], 1)[0]


def exact(op: str, x: np.ndarray) -> np.ndarray:
    from scipy import special

    functions = {"Exp": np.exp, "Tanh": np.tanh, "Erf": special.erf, "Sigmoid": special.expit, "Log": np.log} | {
        "Sin": np.sin,
        "Cos": np.cos,
    }
    with np.errstate(all="ignore"):
        return np.asarray(functions[op](x.astype(np.float64)))


@pytest.mark.parametrize(
    ("op", "low", "high"),
    [
        ("Exp", -87, 88.7),
        ("Tanh", -12, 12),
        ("Erf", -5, 5),
        ("Sigmoid", -80, 30),
        ("Log", 1e-30, 1e4),
        ("Sin", -1e4, 1e4),
        ("Cos", -1e4, 1e4),
    ],
)
def test_relative_error(op: str, low: float, high: float) -> None:
    x = np.concatenate([np.linspace(low, high, 40001), np.geomspace(1e-30, 1, 2001)]).astype(np.float32)
    ours, truth = run(op, x).astype(np.float64), exact(op, x)
    error = np.abs(ours - truth) / np.maximum(np.abs(truth), 1e-30)
    assert error[np.abs(truth) > 1e-6].max() < 4e-7


@pytest.mark.parametrize("op", ["Exp", "Tanh", "Erf", "Sigmoid", "Log"])
def test_special_values(op: str) -> None:
    ours, truth = run(op, SPECIAL), exact(op, SPECIAL)
    with np.errstate(over="ignore"):
        truth = truth.astype(np.float32)
    assert np.array_equal(np.isnan(ours), np.isnan(truth))
    assert np.array_equal(np.isinf(ours), np.isinf(truth))
    assert np.allclose(ours, truth, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("op", ["Sin", "Cos"])
def test_circular_functions_at_the_ends(op: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 1e6, -1e6], np.float32)
    ours, truth = run(op, x), exact(op, x).astype(np.float32)
    assert np.allclose(ours, truth, rtol=1e-6, atol=1e-7, equal_nan=True)
    assert np.array_equal(np.signbit(ours[:2]), np.signbit(truth[:2]))


CHAIN = "a = Exp(x) b = Tanh(a) c = Erf(b) d = Cos(c)"


@pytest.mark.parametrize(
    ("shape", "end"),
    [
        ("float[n] y", "y = Sin(d)"),
        ("float[n] y", "h = Cast<to=10>(d) s = Sin(h) y = Cast<to=1>(s)"),
        ("float[1] y", "e = Sin(d) y = ReduceSum(e)"),
    ],
    ids=["vectors", "float16", "sum"],
)
def test_functions_of_functions_compile_in_little_time(shape: str, end: str) -> None:
    """Written out inside one another they took a minute; the processor's time is that of the compile process, too."""
    model = parse(f"g (float[n] x) => ({shape}) {{ {CHAIN} {end} }}")
    x = np.linspace(-3, 3, 999, dtype=np.float32)
    compiled(parse("g (float[n] x) => (float[n] y) { y = Neg(x) }"))  # the compile process has started
    start = time.monotonic()
    executable = compiled(model)
    assert time.monotonic() - start < 20
    (y,) = executable.run([x], 1)
    truth = np.sin(np.cos(exact("Erf", np.tanh(np.exp(x.astype(np.float64))))))
    if "Reduce" in end:
        truth = truth.sum(keepdims=True)
    np.testing.assert_allclose(y, truth, rtol=2e-3 if "Cast" in end else 1e-5)


def test_functions_of_functions_behind_a_product_compile_in_little_time() -> None:
    w = np.linspace(-0.2, 0.2, 256, dtype=np.float32).reshape(16, 16)
    model = parse(f"g (float[5,16] x0) => (float[5,16] y) {{ x = MatMul(x0, w) {CHAIN} y = Sin(d) }}", {"w": w})
    x = np.linspace(-1, 1, 80, dtype=np.float32).reshape(5, 16)
    start = time.monotonic()
    executable = compiled(model)
    assert time.monotonic() - start < 20
    inner = np.exp(x.astype(np.float64) @ w)
    np.testing.assert_allclose(executable.run([x], 1)[0], np.sin(np.cos(exact("Erf", np.tanh(inner)))), rtol=1e-5)


@pytest.mark.parametrize(
    ("formula", "too_deep"),
    [
        (lambda x: x * tirx.tanh(tirx.log(tirx.exp(x) + 1)), False),  # Mish stays behind its convolution
        (lambda x: tirx.sin(tirx.exp(x)) + tirx.sin(tirx.erf(x)), False),
        (lambda x: tirx.cos(tirx.log(tirx.sigmoid(x))), True),
        (lambda x: tirx.sqrt(x), False),
    ],
    ids=["mish", "beside one another", "inside one another", "none"],
)
def test_only_what_takes_long_to_compile_is_kept_apart(formula: Callable[[Any], Any], too_deep: bool) -> None:
    assert nested_too_deep(formula(tirx.Var("x", "float32"))) is too_deep
