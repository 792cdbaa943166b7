"""The models of the registry as ONNX Runtime gets them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch

from models import ModelCase

EXPORT_OPSET = 20
"""The opset at which ONNX Runtime gets a PyTorch model: its fusions know the exporter's graphs at this one best."""


def export(case: ModelCase, folder: Path) -> Path:
    """The model as ONNX Runtime gets it: the file as it is, or PyTorch's own export."""
    if isinstance(case.model, Path):
        return case.model
    path = folder / f"{case.name}.onnx"
    if isinstance(case.model, onnx.ModelProto):
        onnx.save(case.model, path)
        return path
    inputs = case.example_inputs
    assert isinstance(inputs, tuple)
    with warnings.catch_warnings(action="ignore"):
        logging.disable(logging.WARNING)  # What the exporter lacks for other models, and what its optimizer tries.
        try:
            program = torch.onnx.export(
                case.model,
                inputs,
                dynamo=True,
                opset_version=EXPORT_OPSET,
                dynamic_shapes=case.dynamic_shapes,
                verbose=False,
            )
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None
    program.save(path, external_data=True)
    return path


def arrays(case: ModelCase) -> list[np.ndarray]:
    """The example inputs, in order."""
    if isinstance(case.example_inputs, dict):
        return list(case.example_inputs.values())
    return [tensor.numpy() for tensor in case.example_inputs]
