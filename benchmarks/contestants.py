"""What is timed: a model compiled by us, and the same model in each peer. Each is built in the process that runs it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from optimizer.timing import Build, ContestantFailed, Measurement, Outputs, compete

__all__ = [
    "OPENVINO",
    "ORT",
    "PEERS",
    "TERSOR",
    "TORCH",
    "compete_without_failures",
    "onnx_runtime",
    "openvino",
    "tersor",
    "torch_compile",
    "why_absent",
]

TERSOR, ORT, OPENVINO, TORCH = "tersor", "ONNX Runtime", "OpenVINO", "torch.compile"
PEERS = (ORT, OPENVINO, TORCH)
COMPILERS = ("g++", "clang++")
HINTS = {"float32": "f32", "bfloat16": "bf16"}
"""What OpenVINO calls the precisions."""
LONGEST_REASON = 120


def onnx_runtime(path: Path, inputs: list[np.ndarray], threads: int) -> Callable[[], Outputs]:
    """ONNX Runtime with all its optimizations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = dict(zip((value.name for value in session.get_inputs()), inputs, strict=True))
    return partial(session.run, None, feed)


def openvino(path: Path, inputs: list[np.ndarray], threads: int, precision: str = "float32") -> Callable[[], Outputs]:
    """OpenVINO for the least latency, with the shapes fixed, as its guide for the CPU advises."""
    # With this package there, importing OpenVINO reports that to its makers.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # Python's way to say that it is missing.
    from openvino import Core

    core = Core()
    model = core.read_model(path)
    model.reshape({index: list(array.shape) for index, array in enumerate(inputs)})
    settings = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    feed = dict(enumerate(inputs))

    def call() -> Outputs:
        return [np.array(output) for output in request.infer(feed).to_tuple()]

    return call


def torch_compile(name: str, threads: int, precision: str = "float32") -> Callable[[], Outputs]:
    """PyTorch's own compiler (inductor), which may take the weights for constants.

    In bfloat16 all weights are that; inputs and outputs are converted within the time, as everyone's are.
    """
    import torch

    import models

    torch.set_num_threads(threads)
    case = models.load(name)
    assert isinstance(case.model, torch.nn.Module)
    assert isinstance(case.example_inputs, tuple)
    inputs = case.example_inputs
    dtype = getattr(torch, precision)
    compiled = torch.compile(case.model.to(dtype), dynamic=False, options={"freezing": True})

    def call() -> Outputs:
        with torch.no_grad():
            given = (tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in inputs)
            output = compiled(*given)
        results = output if isinstance(output, tuple) else (output,)
        return [(tensor.float() if tensor.is_floating_point() else tensor).numpy() for tensor in results]

    return call


def tersor(path: Path, inputs: list[np.ndarray], threads: int) -> Callable[[], Outputs]:
    """A saved model, loaded without the optimizer's compile-time dependencies."""
    from optimizer import load

    compiled = load(path)
    compiled.num_threads = threads

    def call() -> Outputs:
        outputs = compiled(*inputs)
        return outputs if isinstance(outputs, tuple) else [outputs]

    return call


def why_absent(contestant: str, is_module: bool) -> str | None:
    """Why a contestant need not even be tried, `None` if it can be.

    Args:
        contestant: Its name.
        is_module: Whether the model is a PyTorch module.
    """
    if contestant == OPENVINO and importlib.util.find_spec("openvino") is None:
        return "not installed"
    if contestant == TORCH and not is_module:
        return "no torch module"
    if contestant == TORCH and not any(map(shutil.which, COMPILERS)):
        return "no C++ compiler"
    return None


def compete_without_failures(
    contestants: Mapping[str, Build], rounds: int
) -> tuple[dict[str, Measurement], dict[str, str]]:
    """Measure those that work, as `compete` does.

    Args:
        contestants: See `compete`.
        rounds: How often each has its turn.

    Returns:
        The measurements, and by name the reason why another one failed.

    Raises:
        ContestantFailed: One failed beside the others that does not fail alone.
    """
    try:
        return compete(contestants, rounds), {}
    except ContestantFailed:
        failed = {name: why for name, build in contestants.items() if (why := _failure(name, build)) is not None}
        if not failed:
            raise
        return compete({name: build for name, build in contestants.items() if name not in failed}, rounds), failed


def _failure(name: str, build: Build) -> str | None:
    """What a contestant says when it fails by itself, in one line."""
    try:
        compete({name: build}, rounds=0)
    except ContestantFailed as error:
        words = " ".join(str(error).removeprefix(f"{name} failed: ").replace("|", "/").split())
        return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON]}..."
    return None
