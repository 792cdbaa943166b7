"""Whole models on a device by all rules, against ONNX Runtime and PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models import registry
from optimizer import CompiledModel, optimize

pytestmark = pytest.mark.slow

AGREES = 1e-4
"""Largest relative difference in float32: convolutions of 50 layers, summed in another order."""


def compiled(name: str, **options: Any) -> CompiledModel:
    case = registry.load(name)
    return optimize(
        case.model, "opencl", example_inputs=case.example_inputs, fallback="error", progress=False, **options
    )


@pytest.mark.parametrize("name", ["minilm", "mobilenet-v2", "resnet-50", "ppocr-rec", "gpt2"])
def test_a_model_agrees_with_the_oracle(name: str) -> None:
    found = compiled(name).report.verification  # optimize() refuses a model that computes something else
    assert found.error is not None and found.tolerance is not None
    assert found.error <= min(found.tolerance, AGREES)


@pytest.mark.parametrize(
    ("name", "precision", "error", "loss"), [("mobilenet-v2", "int8", 0.15, 0.5), ("minilm", "int4", 1e-4, 0.5)]
)
def test_a_quantized_model_agrees_with_its_graph(name: str, precision: str, error: float, loss: float) -> None:
    """Bytes that round the other way in an early layer grow from layer to layer; weights of 4 bits do not round."""
    calibration = [registry.load(name).example_inputs] if precision == "int8" else None
    found = compiled(name, precision=precision, calibration=calibration).report.verification
    assert found.error is not None and found.error <= error
    assert found.loss is not None and 0 < found.loss <= loss


@pytest.mark.parametrize(
    ("name", "axes", "sizes"),
    [
        ("minilm", (0, 1), [(1, 128), (3, 37)]),
        ("gpt2", (1,), [(1, 128), (1, 19)]),
        ("mobilenet-v2", (0,), [(1, 3, 224, 224), (2, 3, 224, 224)]),
        ("resnet-50", (2, 3), [(1, 3, 224, 224), (1, 3, 96, 160)]),
    ],
)
def test_symbolic_sizes(name: str, axes: tuple[int, ...], sizes: list[tuple[int, ...]]) -> None:
    import torch

    case = registry.load(name)
    assert isinstance(case.example_inputs, tuple) and isinstance(case.model, torch.nn.Module)
    dynamic = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in case.example_inputs)
    model = compiled(name, dynamic_shapes=dynamic, verify="off")
    generator = torch.Generator().manual_seed(0)
    for shape in sizes:
        inputs = [
            torch.randn(shape, generator=generator) if example.is_floating_point() else _like(example, shape)
            for example in case.example_inputs
        ]
        with torch.no_grad():
            expected = case.model(*inputs)
        ours = np.asarray(model(*(each.numpy() for each in inputs)))
        theirs = (expected[0] if isinstance(expected, tuple) else expected).numpy()
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() <= AGREES * np.abs(theirs).max()


def _like(example: Any, shape: tuple[int, ...]) -> Any:
    """Ids or a mask of another size: the example's, again and again."""
    flat = example.reshape(-1)
    count = int(np.prod(shape))
    return flat.repeat(-(-count // flat.numel()))[:count].reshape(shape)
