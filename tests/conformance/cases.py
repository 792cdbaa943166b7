"""The node tests of `onnx.backend.test`, and what becomes of one in `optimize`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx

from optimizer import optimize
from optimizer.errors import TersorError, UnsupportedError

Fallback = Literal["onnxruntime", "error"]
FALLBACKS: tuple[Fallback, ...] = ("onnxruntime", "error")
Status = Literal["passed", "refused", "wrong", "failed", "crashed", "hung"]


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        name: The test's name.
        status: `refused` is an `UnsupportedError`, `failed` any other exception, `wrong` a result that differs.
        detail: The error, in one line.
    """

    name: str
    status: Status
    detail: str = ""


@cache
def cases() -> dict[str, Any]:
    """Every node test of the installed onnx, by name."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def run_case(name: str, fallback: Fallback, target: str = "cpu") -> Outcome:
    """Optimize one test's model, run it on the test's inputs, compare with the test's tolerances."""
    case = cases()[name]
    try:
        compiled = optimize(case.model, target=target, verify="off", fallback=fallback, progress=False)
        for inputs, expected in case.data_sets:
            outputs = compiled(*(_array(item) for item in inputs))
            results = list(outputs) if isinstance(outputs, tuple) else [outputs]
            difference = _difference(case, results, [_array(item) for item in expected])
            if difference:
                return Outcome(name, "wrong", difference)
    except UnsupportedError as error:
        return Outcome(name, "refused", _line(error))
    except TersorError as error:
        return Outcome(name, "failed", f"{type(error).__name__}: {_line(error)}")
    except Exception as error:  # noqa: BLE001  # a test's outcome, whatever it is
        return Outcome(name, "failed", f"foreign {type(error).__name__}: {_line(error)}")
    return Outcome(name, "passed")


def _difference(case: Any, results: list[Any], expected: list[Any]) -> str:
    """How the results differ from what is expected, by onnx's own comparison; empty if they do not."""
    from onnx.backend.test.runner import Runner

    try:
        Runner.assert_similar_outputs(expected, results, case.rtol, case.atol)
    except (AssertionError, TypeError, AttributeError) as error:
        return _line(error)
    return ""


def _array(item: Any) -> Any:
    """A value of a test as it is given to a compiled model: arrays, lists of arrays, `None`."""
    if isinstance(item, (list, tuple)):
        return [_array(i) for i in item]
    if isinstance(item, onnx.TensorProto):
        return onnx.numpy_helper.to_array(item)
    return item if item is None or isinstance(item, np.ndarray) else np.asarray(item)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
