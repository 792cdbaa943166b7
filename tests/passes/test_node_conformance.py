"""The node tests of ONNX with our passes in front of ONNX Runtime: nothing fails that ONNX Runtime passes alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.errors import CompileError, TersorError, UnsupportedError
from optimizer.ort_session import OrtSession
from optimizer.pass_manager import PassManager
from passes.pipelines import default_pipeline

ONNX_RUNTIME_ALONE = 1405
"""How many node tests of onnx 1.23.2 ONNX Runtime 1.31.1 passes."""


def node_tests() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def failure(case: Any, prepare: Callable[[onnx.ModelProto], onnx.ModelProto]) -> str | None:
    """Run one test; why it failed, or `None`."""
    from onnx.backend.test.runner import Runner, _normalize_tensor

    try:
        session = OrtSession(prepare(case.model).SerializeToString())
        for inputs, expected in case.data_sets:
            outputs = session.run([_array(_normalize_tensor(item)) for item in inputs])
            expected = [_array(_normalize_tensor(item)) for item in expected]
            Runner.assert_similar_outputs(expected, outputs, case.rtol, case.atol)
    except (AssertionError, CompileError, TersorError, TypeError, UnsupportedError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _array(item: Any) -> Any:
    return np.asarray(item) if isinstance(item, np.generic) else item


def optimized(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    PassManager(default_pipeline("onnx")).run(model)
    result = ir.to_proto(model)
    onnx.checker.check_model(result)
    return result


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_nothing_fails_that_onnx_runtime_passes_alone() -> None:
    cases = node_tests()
    alone = [case for case in cases if failure(case, lambda proto: proto) is None]
    broken = {case.name: reason for case in alone if (reason := failure(case, optimized)) is not None}
    assert not broken
    assert len(alone) >= ONNX_RUNTIME_ALONE
