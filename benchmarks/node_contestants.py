"""Optimizers that leave a smaller ONNX graph; each is run in a process of its own."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROUNDS = 3


@dataclass(frozen=True)
class Left:
    """What an optimizer leaves.

    Attributes:
        nodes: How many nodes, constants not counted; -1 where it failed.
        seconds: What it took, the least of a few runs, from a model in memory to a model in memory.
        fused: How many `Attention` there are.
        unfused: How many `Softmax` there are.
        error: The relative error of what ONNX Runtime computes with the result, where that was looked at.
    """

    nodes: int
    seconds: float
    fused: int = 0
    unfused: int = 0
    error: float | None = None


def run(name: str, path: Path, inputs: list[np.ndarray]) -> Left:
    """One optimizer on one model; the time is the least of three."""
    model = onnx.load(path)
    seconds = []
    result = model
    for _ in range(ROUNDS):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        start = time.perf_counter()
        result = _CONTESTANTS[name](copy)
        seconds.append(time.perf_counter() - start)
    found = Counter(node.op_type for node in result.graph.node if node.op_type != "Constant")
    error = _error(model, result, inputs) if name == "tersor" and inputs else None
    return Left(found.total(), min(seconds), found["Attention"], found["Softmax"], error)


def _tersor(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx_ir as ir

    from optimizer.frontends import load_model
    from optimizer.pass_manager import PassManager
    from passes.pipelines import default_pipeline

    loaded = load_model(model)
    PassManager(default_pipeline("onnx")).run(loaded)
    return ir.to_proto(loaded)


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    slim: onnx.ModelProto = onnxslim.slim(model)
    return slim


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    simple: onnx.ModelProto = onnxsim.simplify(model)[0]
    return simple


def _onnx_runtime(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _error(before: onnx.ModelProto, after: onnx.ModelProto, inputs: list[np.ndarray]) -> float:
    """The norm of the difference of the outputs over the norm of the outputs, the largest over the outputs."""
    pairs = zip(_outputs(before, inputs), _outputs(after, inputs), strict=True)
    return max(float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-30)) for a, b in pairs)


def _outputs(model: onnx.ModelProto, inputs: list[np.ndarray]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs: list[Any] = session.run(None, dict(zip(names, inputs, strict=True)))
    return outputs


_CONTESTANTS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "tersor": _tersor,
    "OnnxSlim": _onnxslim,
    "onnxsim": _onnxsim,
    "ONNX Runtime": _onnx_runtime,
}
NAMES = tuple(_CONTESTANTS)
