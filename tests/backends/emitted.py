"""Hold what an emitter makes of a model against the reference implementation that ships with onnx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.reference import ReferenceEvaluator

from tests.backends.running import compiled

Array = npt.NDArray[Any]

RNG = np.random.default_rng(11)


def normal(*shape: int, dtype: str = "float32") -> Array:
    """Seeded numbers of a standard normal distribution."""
    return RNG.standard_normal(shape).astype(dtype)


def reference(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """What onnx's reference implementation computes."""
    names = [i.name for i in model.graph.input]
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True))))


def emitted(model: onnx.ModelProto, inputs: Sequence[Array]) -> list[Array]:
    """What the compiled model computes, without any help of ONNX Runtime."""
    return compiled(model).run(list(inputs), 1)


def agrees(
    model: onnx.ModelProto,
    inputs: Sequence[Array],
    wanted: Sequence[Array] | None = None,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> None:
    """Demand the reference's results (or the given ones), types and shapes included; NaN equals NaN."""
    results = emitted(model, inputs)
    expected = reference(model, inputs) if wanted is None else wanted
    assert len(results) == len(expected)
    for ours, theirs in zip(results, expected, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)
