"""What can be compared: files, models in memory, compiled models."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import onnx
import onnx_ir as ir

from optimizer.artifact import read_graph, read_original
from optimizer.artifact_reader import ArtifactReader
from optimizer.errors import InputError
from optimizer.frontends.onnx_file import from_ir, from_path, from_proto
from optimizer.frontends.validate import check_graphs
from optimizer.model_diff.facts import Side, read_side

__all__ = ["read_artifact", "read_model"]


def read_model(model: object, title: str) -> Side:
    """The facts about a model of any kind that `diff` takes, as it is: of its own opset, with its own operators.

    Args:
        model: It is not changed.
        title: What to call a model that has no file.

    Raises:
        InputError: It is of no such kind.
        ModelError, ArtifactError: It is damaged.
    """
    if isinstance(model, (str, os.PathLike)):
        path = Path(model)
        return read_side(_from_file(path), path.name)
    if isinstance(model, onnx.ModelProto):
        return read_side(_checked(from_proto(model)), title)
    graph = getattr(model, "graph", None)
    if isinstance(graph, ir.Model):  # A CompiledModel; the class itself is above this layer's concern.
        return read_side(graph, title)
    if isinstance(model, ir.Model):
        return read_side(_checked(from_ir(model)), title)
    raise InputError(
        f"{title} must be the path of an .onnx or .tersor file, an onnx.ModelProto, an onnx_ir.Model or a "
        f"CompiledModel, not {type(model).__name__}"
    )


def read_artifact(path: Path) -> tuple[Side, Side]:
    """The facts about the original and the optimized graph of a saved compiled model.

    Raises:
        InputError: The file is no saved compiled model.
        ArtifactError: It is damaged, or was saved without its graph.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"{str(path)!r} is no .tersor file, which has its original with it: name a second model")
    reader = ArtifactReader(path)
    return read_original(reader), read_side(read_graph(reader), path.name)


def _from_file(path: Path) -> ir.Model:
    if path.is_file() and zipfile.is_zipfile(path):
        return read_graph(ArtifactReader(path))
    return _checked(from_path(path))


def _checked(model: ir.Model) -> ir.Model:
    check_graphs(model)
    return model
