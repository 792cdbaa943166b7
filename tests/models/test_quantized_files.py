"""A quantized model that is saved as ONNX gives the same answers in plain ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.accuracy_tasks import paragraphs, pictures
from models import minilm
from models.case import MissingWeights, ModelCase
from models.registry import load
from optimizer import CompiledModel, PrecisionPolicy, optimize
from optimizer.quantized_comparison import loss_of

pytestmark = pytest.mark.slow


def in_onnxruntime(path: Path, inputs: list[Any], accuracy_level: str | None = None) -> list[Any]:
    """What it computes as it comes, with all of its own rewrites."""
    options = onnxruntime.SessionOptions()
    if accuracy_level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", accuracy_level)
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def saved(case: ModelCase, path: Path, target: str, calibration: Any, **options: Any) -> CompiledModel:
    compiled = optimize(
        case.model, target, example_inputs=case.example_inputs, calibration=calibration, progress=False, **options
    )
    compiled.save_onnx(path)
    onnx.checker.check_model(path, full_check=True)
    return compiled


def sentences(half: int, count: int) -> list[tuple[Any, ...]]:
    return [tuple(tensor.numpy() for tensor in minilm.tokenize([text])) for text in paragraphs(half)[:count]]


def checked(compiled: CompiledModel, path: Path, inputs: list[Any], level: str | None = None) -> float:
    """The relative difference of plain ONNX Runtime from the compiled model; at most what verification allows."""
    difference = loss_of(in_onnxruntime(path, inputs, level), [compiled(*inputs)])
    tolerance = compiled.report.verification.tolerance
    assert tolerance is not None and difference <= tolerance, (difference, tolerance)
    return difference


@pytest.fixture(scope="module")
def encoder() -> ModelCase:
    try:
        return minilm.case()
    except MissingWeights as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("target", ["cpu", "onnx"])
def test_minilm_in_int8(encoder: ModelCase, target: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    compiled = saved(encoder, path, target, sentences(0, 16), precision="int8")
    for inputs in sentences(1, 3):
        checked(compiled, path, list(inputs))


def test_minilm_in_int4(encoder: ModelCase, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    compiled = saved(encoder, path, "cpu", sentences(0, 8), precision="int4")
    for inputs in sentences(1, 3):
        # In float32, as the graph says; as it comes ONNX Runtime 1.31 rounds what 4-bit weights are multiplied with.
        assert checked(compiled, path, list(inputs), "1") < 1e-3
        assert loss_of(in_onnxruntime(path, list(inputs)), [compiled(*inputs)]) < 0.05


def test_minilm_with_a_form_for_each_layer(encoder: ModelCase, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    policy = PrecisionPolicy(max_bits=6, forms=("float32", "int8-dynamic", "int4-64"), method="rtn")
    compiled = saved(encoder, path, "cpu", sentences(0, 8), precision=policy)
    assert compiled.report.policy is not None
    assert {row.form for row in compiled.report.policy.layers} >= {"int8-dynamic", "int4-64"}
    for inputs in sentences(1, 2):
        checked(compiled, path, list(inputs), "1")


@pytest.mark.parametrize("target", ["cpu", "onnx"])
def test_efficientnet_in_int8(target: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    try:
        case, sets = load("efficientnet-lite0"), [(x,) for x in pictures(0, 4)]
    except MissingWeights as error:
        pytest.skip(str(error))
    compiled = saved(case, path, target, sets, precision="int8")
    found = []
    for x in pictures(1, 1)[:6]:
        difference = loss_of(in_onnxruntime(path, [x]), [compiled(x)])
        found.append(difference)
    assert np.median(found) <= (compiled.report.verification.tolerance or 0.0), found
