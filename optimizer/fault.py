"""A pass that broke its contract, with the smallest model that shows it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from optimizer.errors import ArtifactError, ExecutionError, UnsupportedError, VerificationError
from optimizer.reference import run_reference

__all__ = ["Fault"]


@dataclass(frozen=True)
class Fault:
    """What a pass did wrong, and where.

    Attributes:
        pass_name: The pass.
        pipeline: The pass with its options, as a pipeline string.
        kind: See `optimizer.pass_check.Breach`.
        reason: In words.
        node: The label of the first node that is wrong, `""` if it is not about one node.
        origins: Labels of the original nodes that this node stands for.
        model: The smallest part of the model before the pass that shows the fault.
        inputs: One for each input of `model`.
    """

    pass_name: str
    pipeline: str
    kind: str
    reason: str
    node: str
    origins: tuple[str, ...]
    model: ir.Model
    inputs: Sequence[Any]

    def __str__(self) -> str:
        at = f" at node {self.node!r}" if self.node else ""
        return f"pass {self.pass_name!r}{at}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """JSON types, without the model."""
        return {
            "pass": self.pass_name,
            "pipeline": self.pipeline,
            "kind": self.kind,
            "reason": self.reason,
            "node": self.node,
            "origins": list(self.origins),
            "nodes_to_show_it": len(self.model.graph),
        }

    def save(self, folder: Path) -> Path:
        """Write the model and its inputs as ONNX's own test cases are written, and what is wrong as `fault.json`.

        Args:
            folder: Where; a new folder is made in it, named after the pass.

        Returns:
            The new folder: `model.onnx` and `test_data_set_0/`, with `input_0.pb` ... and the right `output_0.pb` ...

        Raises:
            ArtifactError: It cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".fault-", dir=folder))
            scratch.chmod(0o755)  # it is for others to look at
            try:
                self._write(scratch)
                return _move(scratch, folder / self.pass_name)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        except OSError as error:
            raise ArtifactError(
                f"the fault of pass {self.pass_name!r} cannot be written into {str(folder)!r}: "
                f"{error.strerror or error}; give another folder"
            ) from error

    def _write(self, folder: Path) -> None:
        proto = ir.to_proto(self.model)
        (folder / "model.onnx").write_bytes(proto.SerializeToString(deterministic=True))
        (folder / "fault.json").write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        data = folder / "test_data_set_0"
        data.mkdir()
        _write_values(data, "input", self.model.graph.inputs, self.inputs)
        try:
            outputs = run_reference(self.model, self.inputs)
        except (ExecutionError, UnsupportedError, VerificationError):
            return
        _write_values(data, "output", self.model.graph.outputs, outputs)


def _write_values(folder: Path, kind: str, values: Sequence[ir.Value], arrays: Sequence[Any]) -> None:
    for number, (value, array) in enumerate(zip(values, arrays, strict=True)):
        name = value.name or ""
        if array is None:
            message = onnx.numpy_helper.from_optional(None, name)
        elif isinstance(array, (list, tuple)):
            message = onnx.numpy_helper.from_list(list(array), name)
        else:
            message = onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        (folder / f"{kind}_{number}.pb").write_bytes(message.SerializeToString(deterministic=True))


def _move(source: Path, wanted: Path) -> Path:
    """Give the folder its name, or that name with a number if there is one of that name."""
    number = 1
    target = wanted
    while target.exists():
        number += 1
        target = wanted.with_name(f"{wanted.name}-{number}")
    return source.rename(target)
