"""The node tests of ONNX with our passes in front of ONNX Runtime: nothing fails that ONNX Runtime passes alone."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.errors import CompileError, TersorError, UnsupportedError
from optimizer.frontends.opset import to_canonical_opset
from optimizer.ir.shapes import Shapes
from optimizer.ir.walk import all_nodes
from optimizer.onnx_limits import OnnxLimits
from optimizer.ort_session import OrtSession
from optimizer.pass_manager import PassManager
from passes.lowering.fit import misfit
from passes.pipelines import default_pipeline, within

Prepare = Callable[[onnx.ModelProto], onnx.ModelProto]

LEAST_PASSED = {"as it is": 1405, "symbols": 1400, "open shapes": 1400, "constants": 1400}
"""How many node tests of onnx 1.23.2 ONNX Runtime 1.31.1 passes alone, at least."""


def node_tests() -> list[Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def failure(case: Any, model: onnx.ModelProto, prepare: Prepare) -> str | None:
    """Run one test; why it failed, or `None`.

    Args:
        case: One of `node_tests`.
        model: Its model, or a variant that has some of its inputs.
        prepare: What is done with the model before ONNX Runtime gets it.
    """
    from onnx.backend.test.runner import Runner, _normalize_tensor

    try:
        session = OrtSession(prepare(model).SerializeToString())
        names = [value.name for value in case.model.graph.input]
        for inputs, expected in case.data_sets:
            feeds = dict(zip(names, (_array(_normalize_tensor(item)) for item in inputs), strict=False))
            outputs = session.run([feeds[name] for name in session.input_names])
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


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    return result


def with_symbols(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every size of an input has a name, and nothing is said about the outputs."""
    result = copy(proto)
    for value in result.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{axis}"
    for value in result.graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return result


def with_open_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Of every input and output only the rank is known."""
    result = copy(proto)
    for value in (*result.graph.input, *result.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.Clear()
    return result


def with_constants(case: Any) -> onnx.ModelProto:
    """Every input is an initializer instead."""
    from onnx.backend.test.runner import _normalize_tensor

    result = copy(case.model)
    # Before version 4 every initializer was an input too.
    result.ir_version = max(4, result.ir_version)
    inputs, _ = case.data_sets[0]
    kept = []
    for value, item in zip(result.graph.input, inputs, strict=True):
        array = _array(_normalize_tensor(item))
        if isinstance(array, np.ndarray) and value.type.HasField("tensor_type"):
            result.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        else:
            kept.append(value)
    del result.graph.input[:]
    result.graph.input.extend(kept)
    return result


def same(proto: onnx.ModelProto) -> onnx.ModelProto:
    return proto


VARIANTS: dict[str, Callable[[Any], onnx.ModelProto]] = {
    "as it is": lambda case: case.model,
    "symbols": lambda case: with_symbols(case.model),
    "open shapes": lambda case: with_open_shapes(case.model),
    "constants": with_constants,
}


LEAST_LOWERED = {13: 1190, 17: 1250}
"""How many of them can be said in an older opset. The others are refused: operators and types that are newer."""


def lowered(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    to_canonical_opset(model)
    PassManager(within(default_pipeline("onnx"), OnnxLimits(opset))).run(model)
    shapes = Shapes(model)
    assert [node for node in all_nodes(model) if not node.domain and misfit(node, opset, shapes)] == []
    assert model.opset_imports[""] <= opset
    result = ir.to_proto(model)
    onnx.checker.check_model(result)
    return result


def canonical(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    to_canonical_opset(model)
    return ir.to_proto(model)


@pytest.mark.slow
@pytest.mark.unwatched
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("opset", LEAST_LOWERED)
def test_an_older_opset_computes_the_same_or_is_refused(opset: int) -> None:
    passed, broken = 0, {}
    for case in node_tests():
        if failure(case, case.model, canonical) is None:
            reason = failure(case, case.model, functools.partial(lowered, opset=opset))
            passed += reason is None
            if reason is not None and "ask for a later one" not in reason:
                broken[case.name] = reason
    assert not broken
    assert passed >= LEAST_LOWERED[opset]


@pytest.mark.slow
@pytest.mark.unwatched  # a few of the tests are no valid models
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_fails_that_onnx_runtime_passes_alone(variant: str) -> None:
    passed = 0
    broken = {}
    for case in node_tests():
        model = VARIANTS[variant](case)
        if failure(case, model, same) is None:
            passed += 1
            reason = failure(case, model, optimized)
            if reason is not None:
                broken[case.name] = reason
    assert not broken
    assert passed >= LEAST_PASSED[variant]
