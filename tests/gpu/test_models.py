"""Whole models on a device, against ONNX Runtime."""

import pytest

from models import registry
from optimizer import optimize


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "mobilenet-v2", "resnet-50", "ppocr-rec", "gpt2"])
def test_a_model_agrees_with_the_oracle(name: str) -> None:
    case = registry.load(name)
    model = optimize(case.model, "opencl", example_inputs=case.example_inputs, fallback="error", progress=False)
    found = model.report.verification  # optimize() refuses a model that computes something else
    assert found.error is not None and found.tolerance is not None and found.error <= found.tolerance
