"""Models as PyTorch exports them, and what the pipeline leaves of them."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch

from optimizer.frontends import load_model
from optimizer.pass_manager import PassManager
from optimizer.reference import Oracle, run_reference
from passes.pipelines import default_pipeline

__all__ = ["check", "exported", "only_attentions", "tensors"]


def exported(module: Any, inputs: tuple[Any, ...], path: Path, opset: int, dynamic_shapes: Any = None) -> Path:
    """The file that PyTorch's exporter writes."""
    with warnings.catch_warnings(action="ignore"):
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                module, inputs, dynamo=True, opset_version=opset, verbose=False, dynamic_shapes=dynamic_shapes
            )
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None
    program.save(path)
    return path


def only_attentions(path: Path, count: int, *inputs: Sequence[np.ndarray]) -> ir.Model:
    """The model after the pipeline: so many `Attention`, no Softmax, and the same results on the inputs.

    Args:
        path: The model.
        count: How many attentions it has.
        inputs: What it is run with; made up when there are none.
    """
    model = load_model(path)
    original = model.clone()
    oracles = [Oracle(original, seed=0, example=list(given)) for given in inputs] or [Oracle(original, seed=0)]
    PassManager(default_pipeline("onnx")).run(model)
    onnx.checker.check_model(ir.to_proto(model))
    for oracle in oracles:
        comparison = oracle.compare(run_reference(model, oracle.inputs))
        assert comparison.passed, comparison.reason
    found = Counter(node.op_type for node in model.graph)
    assert (found["Attention"], found["Softmax"]) == (count, 0)
    return model


def check(path: Path, attentions: int, rotations: int = 0) -> Counter[str]:
    """The operators of the model after the pipeline, which computes the same."""
    found = Counter(node.op_type for node in only_attentions(path, attentions).graph)
    assert found["RotaryEmbedding"] == rotations
    return found


def tensors(*shapes: tuple[int, ...]) -> tuple[Any, ...]:
    """Normally distributed, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)
