"""What is timed: a model in ONNX Runtime, and the same model compiled. Each is built in the process that runs it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from optimizer.timing import Outputs


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


def tersor(path: Path, inputs: list[np.ndarray], threads: int) -> Callable[[], Outputs]:
    """A saved model, loaded without the optimizer's compile-time dependencies."""
    from optimizer import load

    compiled = load(path)
    compiled.num_threads = threads

    def call() -> Outputs:
        outputs = compiled(*inputs)
        return outputs if isinstance(outputs, tuple) else [outputs]

    return call
