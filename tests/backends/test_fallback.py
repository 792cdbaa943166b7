"""Fallback partitions: what ONNX Runtime cannot load is an error of the compilation, what it rejects one of the run."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import ExecutionError, UnsupportedError
from optimizer.executable import run_executable
from tests.backends.emitted import normal
from tests.backends.running import compiled, oracle, parse


def test_a_partition_that_onnx_runtime_cannot_load_is_an_error_of_the_compilation() -> None:
    model = parse("g (float[4] x) => (float[4] y) { t = Exp(x) y = com.example.Mystery(t) }")
    model.opset_import.add(domain="com.example", version=1)
    with pytest.raises(UnsupportedError, match=r"fallback partition partition1: ONNX Runtime cannot load.*Mystery"):
        compiled(model, fallback="onnxruntime")


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "MaxPool<kernel_shape=[2], pads=[1,1]>"])
def test_a_pool_over_nothing_fails_as_in_onnx_runtime(op: str) -> None:
    model = parse(f"g (float[1,2,0] x) => (float[1,2,1] y) {{ y = {op}(x) }}")
    x = np.empty((1, 2, 0), np.float32)
    with pytest.raises(UnsupportedError, match="which must be at least 1"):
        compiled(model)
    executable = compiled(model, fallback="onnxruntime")
    with pytest.raises(ExecutionError, match="Pool"):
        run_executable(executable, [x], 1)


@pytest.mark.parametrize("op", ["GlobalMaxPool", "MaxPool<kernel_shape=[3]>"])
def test_a_pool_over_a_symbolic_axis_checks_its_size(op: str) -> None:
    model = parse(f"g (float[1,2,m] x) => (float[1,2,k] y) {{ y = {op}(x) }}")
    executable = compiled(model)
    x = normal(1, 2, 5)
    np.testing.assert_array_equal(executable.run([x], 1)[0], oracle(model, [x])[0])
    with pytest.raises(ExecutionError, match="which must be at least 1: 0 and 1"):
        run_executable(executable, [np.empty((1, 2, 0), np.float32)], 1)
