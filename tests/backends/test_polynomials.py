"""The transcendental functions: accuracy over the whole range, and what IEEE says at its ends."""

import numpy as np
import pytest

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
