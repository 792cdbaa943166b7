"""The process in which models run for comparison: what a damaged one does to a runtime stays there.

ONNX Runtime with its graph optimizations off runs the model; where that cannot load it, `onnx.reference`, which loops
in Python, if the model is small.
"""

from __future__ import annotations

import atexit
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from optimizer.child_process import ChildDiedError, ChildProcess, serve
from optimizer.errors import ExecutionError, UnsupportedError, VerificationError
from optimizer.executable import Array
from optimizer.ir.costs import model_costs
from optimizer.ir.weights import weights_as_inputs
from optimizer.ir.widen import widened
from optimizer.shared_weights import SharedWeights

__all__ = ["PROCESS", "ask", "run_in_process", "try_to_load"]

_SLOW_ORACLE_BYTES = 2**28
_SLOW_ORACLE_FLOPS = 2**28
"""`onnx.reference` is not asked for models that are larger or compute more."""

_LEAST_SECONDS = 60.0
_SLOWEST_FLOPS = 2e8
"""A run may take a minute, and more if the model computes so much that this many operations a second need it."""

_LEAST_LOADING_SECONDS = 20.0
_SLOWEST_LOADING = 2e7
"""Loading may take twenty seconds, and more if there are so many weights that so many bytes a second need it."""

Run = Callable[[Sequence[Any]], list[Any]]

PROCESS = ChildProcess("optimizer.reference_process")
atexit.register(PROCESS.close)


def run_in_process(
    model: ir.Model, inputs: Sequence[Any], shared: SharedWeights, *, num_threads: int, input_shapes: Mapping[str, Any]
) -> list[Any]:
    """Run a model once, without any optimization; one of bfloat16 in float32, with each result rounded.

    Args:
        model: Not changed.
        inputs: One for each input of the graph.
        shared: Holds the weights that lie in no file; those of an earlier run are still there.
        num_threads: For ONNX Runtime.
        input_shapes: Of `inputs`, by name; for an estimate of what the run costs.

    Raises:
        UnsupportedError: No runtime can load the model.
        ExecutionError: The runtime failed on these inputs.
        VerificationError: The runtime crashed, or took far longer than the model can take.
    """
    model = widened(model)
    data, weights = weights_as_inputs(model)
    costs = model_costs(model, input_shapes)
    request = {
        "model": data,
        "weights": [shared.locate(tensor) for tensor in weights],
        "inputs": list(inputs),
        "threads": num_threads,
        "small": costs.bytes <= _SLOW_ORACLE_BYTES and costs.flops <= _SLOW_ORACLE_FLOPS,
        "seconds": max(_LEAST_SECONDS, costs.flops / _SLOWEST_FLOPS),
    }
    return ask(request)


def try_to_load(model: ir.Model, shared: SharedWeights) -> None:
    """Load a model that cannot be run for comparison, as ONNX Runtime optimizes it: what may follow in this process.

    Args:
        model: Not changed.
        shared: Holds the weights that lie in no file.

    Raises:
        VerificationError: The runtime crashed, or takes far too long.
    """
    data, weights = weights_as_inputs(model)
    places = [shared.locate(tensor) for tensor in weights]
    seconds = _LEAST_LOADING_SECONDS + sum(tensor.nbytes for tensor in weights) / _SLOWEST_LOADING
    with contextlib.suppress(UnsupportedError):
        ask({"model": data, "weights": places, "inputs": None, "threads": 1, "small": False, "seconds": seconds})


def ask(request: dict[str, Any]) -> list[Any]:
    """Have a request answered; see `handle`."""
    try:
        answer = PROCESS.ask(request)
    except ChildDiedError as error:
        raise VerificationError(
            f"the runtime that computes the results to compare with died on this model ({error}); it may not bear "
            "inputs that are made up: give example_inputs; or the model may be damaged: check it with "
            'onnx.checker.check_model(full_check=True), or compile it unchecked with verify="off"'
        ) from error
    if "unsupported" in answer:
        raise UnsupportedError(answer["unsupported"])
    if "failed" in answer or "error" in answer:
        raise ExecutionError(answer.get("failed") or answer["error"])
    outputs: list[Any] = answer["outputs"]
    return outputs


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Run a model: `"model"`, serialized, on `"inputs"`, then `"weights"`, which stand behind its own inputs.

    Without inputs it is only loaded.
    """
    weights = [location.map() for location in request["weights"]]
    try:
        if request["inputs"] is None:
            return _load(request["model"])
        run = _runner(request["model"], weights, request["threads"], small=request["small"])
        return {"outputs": run([*request["inputs"], *weights])}
    except UnsupportedError as error:
        return {"unsupported": str(error)}
    except ExecutionError as error:
        return {"failed": str(error)}


def _load(data: bytes) -> dict[str, Any]:
    from optimizer.ort_session import OrtSession

    OrtSession(data)
    return {"outputs": []}


def main() -> None:
    """Serve until the parent closes the pipe."""
    serve(handle, _import_runtime)


def _import_runtime() -> None:
    import onnxruntime  # noqa: F401


def _runner(data: bytes, weights: Sequence[Array], threads: int, *, small: bool) -> Run:
    try:
        return _fast_runner(data, weights, threads)
    except UnsupportedError as error:
        if not small:
            raise
        return _slow_runner(data, error)


def _fast_runner(data: bytes, weights: Sequence[Array], threads: int) -> Run:
    from optimizer.ort_session import OrtSession

    try:
        return OrtSession(data, optimize=False, num_threads=threads).run
    except UnsupportedError:  # some kernels want their weights as constants
        if not weights:
            raise
        session = OrtSession(*_with_constants(data, weights), optimize=False, num_threads=threads)
        return lambda inputs: session.run(inputs[: len(inputs) - len(weights)])


def _with_constants(data: bytes, weights: Sequence[Array]) -> tuple[bytes, dict[str, Array]]:
    """The model with its last inputs as initializers, which lie in files in memory."""
    model = onnx.ModelProto.FromString(data)
    graph = model.graph
    moved = list(graph.input)[len(graph.input) - len(weights) :]
    del graph.input[len(graph.input) - len(weights) :]
    files: dict[str, Array] = {}
    for value, weight in zip(moved, weights, strict=True):
        location = f"weight{len(files):05d}"
        files[location] = np.ascontiguousarray(weight).reshape(-1).view(np.uint8)
        tensor = graph.initializer.add(
            name=value.name,
            data_type=value.type.tensor_type.elem_type,
            dims=weight.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, entry in (("location", location), ("offset", "0"), ("length", str(weight.nbytes))):
            tensor.external_data.add(key=key, value=entry)
    return model.SerializeToString(deterministic=True), files


def _slow_runner(data: bytes, why: UnsupportedError) -> Run:
    from onnx.reference import ReferenceEvaluator

    failures = (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    )
    try:
        evaluator = ReferenceEvaluator(onnx.ModelProto.FromString(data))
    except failures as error:
        raise UnsupportedError(f"no runtime can load the model: {why}") from error

    def run(inputs: Sequence[Any]) -> list[Any]:
        feeds = dict(zip(evaluator.input_names, inputs, strict=True))
        try:
            with np.errstate(all="ignore"):
                return list(evaluator.run(None, feeds))
        except failures as error:
            raise ExecutionError(f"onnx.reference failed: {type(error).__name__}: {error}") from error

    return run
