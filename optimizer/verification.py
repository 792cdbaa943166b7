"""The checks that `optimize()` makes against the original model, and what it does where none can be made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.comparison import USELESS
from optimizer.errors import ExecutionError, InputError, TargetError, UnsupportedError, VerificationError
from optimizer.executable import Executable, run_executable
from optimizer.ir.specs import specs_of
from optimizer.ir.weights import weight_bytes
from optimizer.memory import give_back_free_memory
from optimizer.quantized_comparison import compare_quantized, loss_of
from optimizer.reference import Oracle
from optimizer.reference_process import PROCESS, try_to_load
from optimizer.report import Verification
from optimizer.shared_weights import SharedWeights
from optimizer.signature import bind, is_torch

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.calibration import Samples

__all__ = ["example_for", "make_oracle", "prewarm", "verify_executable"]


_LARGE_BYTES = 2**22
"""From so many bytes of weights on, the 100 MB of the process that computed the reference are wanted for compiling."""


def prewarm(mode: str) -> None:
    """Let the process in which models run start while others read the model."""
    if mode != "off":
        PROCESS.start()


def make_oracle(
    model: ir.Model, mode: str, seed: int, example: Sequence[Any] | None, samples: Samples | None = None
) -> tuple[Oracle | None, Verification]:
    """Run the original model, if it is to be compared with; say why not if it cannot be.

    Args:
        model: The original.
        mode: `verify` of `optimize()`.
        seed: For inputs that are made up.
        example: Inputs of the sizes to use.
        samples: Calibration data, whose first sets are the inputs then: ranges that were learned from it say nothing of
            made up ones.

    Raises:
        VerificationError: The original model crashes the runtime, or hangs it.
    """
    if mode == "off":
        return None, Verification(mode, reason='verify="off"')
    try:
        given = [] if samples is None else list(islice(samples, 2))
        oracle = Oracle(model, seed=seed, example=example, other_sizes=mode == "each", given=given)
    except UnsupportedError as error:
        with SharedWeights() as shared:
            try_to_load(model, shared)
        return None, Verification(mode, reason=str(error))
    finally:
        if mode == "final" and weight_bytes(model) >= _LARGE_BYTES:
            PROCESS.release()
        give_back_free_memory()
    return oracle, Verification(mode)


def verify_executable(
    executable: Executable, oracle: Oracle | None, plan: Verification, num_threads: int, graph: ir.Model
) -> Verification:
    """Compare the compiled model with the original; what was compiled for another machine is not verified.

    Args:
        executable: The compiled model.
        oracle: What the original computes; `None` if nothing can be compared.
        plan: What the report says then.
        num_threads: For the run.
        graph: What was compiled: in the precision of its types.

    Raises:
        VerificationError: It computes something else, or fails where the original does not.
    """
    if oracle is None:
        return plan
    try:
        outputs = run_executable(executable, _runnable(oracle.inputs), num_threads)
    except TargetError as error:  # compiled for another machine
        return Verification(plan.mode, reason=str(error))
    except ExecutionError as error:
        raise VerificationError(f"the compiled model fails on inputs that the original runs with: {error}") from error
    if oracle.tolerance.is_rounded_in(graph):
        return _verify_quantized(outputs, oracle, plan.mode, graph)
    result = oracle.verify(outputs, "the compiled model", graph)
    return Verification(plan.mode, result.error, result.tolerance)


def _verify_quantized(outputs: Sequence[Any], oracle: Oracle, mode: str, graph: ir.Model) -> Verification:
    """Compare with the quantized graph, which says whether the code is right, and with the original.

    Raises:
        VerificationError: The code is wrong, or the quantized model is of no use.
    """
    loss = loss_of(outputs, oracle.outputs)
    try:
        result = compare_quantized(outputs, oracle.outputs, graph, oracle.inputs)
    except UnsupportedError as error:
        verification = Verification(
            mode, reason=f"the quantized graph cannot be run to compare with: {error}", loss=loss
        )
    else:
        if not result.passed:
            raise VerificationError(
                "the compiled model does not compute what the quantized graph does: output "
                f"{result.output!r}: {result.reason}"
            )
        verification = Verification(mode, result.error, result.tolerance, loss=loss)
    if not loss <= USELESS:
        raise VerificationError(
            f"quantization leaves nothing of use: the relative error against the original is {loss:.2g}; keep the "
            "layers that lose most in float (nodes_to_exclude), give calibration data that is like what the model will "
            "meet, or take another calibrate_method"
        )
    return verification


def example_for(graph: ir.Graph, model: object, example_inputs: object) -> list[Any] | None:
    """The example inputs in the order of the graph's; `None` if there are none, or if an export left some of them out.

    Raises:
        InputError: Inputs for an ONNX model do not fit its signature.
    """
    specs = specs_of(graph.inputs)
    exported = getattr(model, "example_inputs", None)
    if example_inputs is None and exported is not None:
        example_inputs = exported
    if example_inputs is None:
        return None
    names = {spec.name for spec in specs}
    if isinstance(example_inputs, Mapping) and names <= example_inputs.keys():
        example_inputs = {name: example_inputs[name] for name in names}
        return bind(specs, (), example_inputs)
    leaves = list(_leaves(example_inputs))
    from_torch = exported is not None or hasattr(model, "named_parameters")
    try:
        return bind(specs, leaves, {})
    except InputError:
        if from_torch:
            return None
        raise


def _leaves(value: object) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, np.ndarray) or is_torch(value):
        yield value


def _runnable(inputs: Sequence[Any]) -> list[Any]:
    return [np.ascontiguousarray(x) if isinstance(x, np.ndarray) and x.ndim else x for x in inputs]
