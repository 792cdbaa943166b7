"""Calibration data is checked set by set, and the values of a model on it are those that it computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.calibration import Samples, observe
from optimizer.errors import InputError

TEXT = """
<ir_version: 10, opset_import: ["": 23]>
g (float[N, 3] x, int64[N, 1] index) => (float[N, 1] y) {
  hidden = Exp(x)
  picked = GatherElements<axis=1>(hidden, index)
  y = Neg(picked)
}
"""


def model() -> ir.Model:
    return ir.from_onnx_text(TEXT)


def given(rows: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {"x": rng.standard_normal((rows, 3), np.float32), "index": rng.integers(0, 3, (rows, 1))}


def test_the_values_of_each_set() -> None:
    sets = [given(2), given(5)]
    samples = Samples.of(model().graph, iter(sets))
    assert len(samples) == 2
    for _ in range(2):
        for seen, own in zip(observe(model(), ["hidden", "x", "y"], samples), sets, strict=True):
            np.testing.assert_allclose(seen[0], np.exp(own["x"]), rtol=1e-6)
            assert np.array_equal(seen[1], own["x"])
            np.testing.assert_allclose(seen[2], -np.take_along_axis(np.exp(own["x"]), own["index"], 1), rtol=1e-6)


def test_sets_by_position() -> None:
    own = given()
    (values,) = Samples.of(model().graph, [(own["x"], own["index"])])
    assert np.array_equal(values[0], own["x"])
    assert np.array_equal(values[1], own["index"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "iterable of input dicts.*not int"),
        ({"x": np.ones(3)}, "not a single dict"),
        (np.ones((2, 3), np.float32), "not a single ndarray"),
        ([], "no set of inputs"),
        ([given(), {"x": given()["x"]}], "set 1: missing input"),
        ([{**given(), "z": 1}], "set 0: unknown input 'z'"),
        ([given(), given(), {**given(), "x": np.ones((2, 4), np.float32)}], "set 2: .*axis 1 is fixed"),
        ([{**given(), "x": np.full((2, 3), np.nan, np.float32)}], "set 0: input 'x' holds NaN"),
    ],
)
def test_data_that_does_not_fit_is_refused(data: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Samples.of(model().graph, data)
