"""The ways in: a PyTorch module or program, a file, or ONNX in memory becomes a canonical `onnx_ir.Model`.

Canonical means: sound (`validate`), topologically sorted, default-domain opset 23 or later, no input that is also a
weight, weights shared with the caller or mapped from the file. The caller's objects are never changed.
"""

from __future__ import annotations

import os

import onnx
import onnx_ir as ir

from optimizer.errors import InputError
from optimizer.frontends.onnx_file import from_ir, from_path, from_proto
from optimizer.frontends.opset import to_canonical_opset
from optimizer.frontends.pytorch import from_torch, is_torch_model
from optimizer.frontends.validate import validate

__all__ = ["load_model"]


def load_model(model: object, *, example_inputs: object = None, dynamic_shapes: object = None) -> ir.Model:
    """Read a model of any kind that `optimize()` takes.

    Args:
        model: A `torch.nn.Module`, a `torch.export.ExportedProgram`, the path of an `.onnx` file, an `onnx.ModelProto`
            or an `onnx_ir.Model`.
        example_inputs: What a module is called with, for its export. See `optimize()`.
        dynamic_shapes: Which dimensions of a module stay dynamic, as in `torch.export.export`.

    Returns:
        A model of our own, in canonical form.

    Raises:
        InputError: `model` is of none of these kinds, or an option is missing or does not apply.
        ModelError: The model is damaged.
        UnsupportedError: It is sound, but of an opset or with an operator that cannot be read.
    """
    if dynamic_shapes is not None and not is_torch_model(model):
        raise InputError("dynamic_shapes applies to PyTorch models only; an ONNX model says itself what is dynamic")
    if is_torch_model(model):
        loaded = from_torch(model, example_inputs, dynamic_shapes)
    elif isinstance(model, (str, os.PathLike)):
        loaded = from_path(model)
    elif isinstance(model, onnx.ModelProto):
        loaded = from_proto(model)
    elif isinstance(model, ir.Model):
        loaded = from_ir(model)
    else:
        raise InputError(
            f"model must be a torch.nn.Module, a torch.export.ExportedProgram, the path of an .onnx file, an "
            f"onnx.ModelProto or an onnx_ir.Model, not {type(model).__name__}"
        )
    validate(loaded)
    to_canonical_opset(loaded)
    return loaded
