"""What every pass must stand, whatever it does."""

from __future__ import annotations

import difflib

import onnx
import onnx_ir as ir

from optimizer.ir.fingerprint import describe, fingerprint
from optimizer.pass_manager import Pass, PassManager
from optimizer.reference import Oracle, run_reference

__all__ = ["check_pass", "difference"]


def check_pass(pass_: Pass, model: ir.Model, *, seed: int = 0) -> ir.Model:
    """Run a pass on a model and check that it keeps its contract.

    1. `modified` says whether the fingerprint has changed.
    2. The interface is the same: names, types and shapes of inputs and outputs.
    3. The result is valid by ONNX's checker.
    4. It computes the same, on seeded inputs, within the tolerance of `optimizer.reference`.
    5. A second run changes nothing.
    6. Another run on the same model gives the same bytes.

    Args:
        pass_: The pass.
        model: Not changed.
        seed: For the inputs.

    Returns:
        The model after the pass.

    Raises:
        AssertionError: The pass broke its contract; the message says how.
    """
    result, modified = _run(pass_, model)
    changed = fingerprint(result) != fingerprint(model)
    assert changed == modified, (
        f"{pass_} says modified={modified}, but the model {'is' if changed else 'is not'} changed"
    )
    assert _interface(result) == _interface(model), f"{pass_} changed the interface to {_interface(result)}"
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    oracle = Oracle(model.clone(), seed=seed)
    comparison = oracle.compare(run_reference(result, oracle.inputs))
    assert comparison.passed, f"{pass_} changed output {comparison.output!r}: {comparison.reason}"
    again, modified_again = _run(pass_, result)
    assert not modified_again, f"{pass_} changed its own result:\n{difference(result, again)}"
    other, _ = _run(pass_, model)
    assert _bytes(other) == _bytes(result), f"{pass_} gave different results in two runs"
    return result


def difference(before: ir.Model, after: ir.Model, *, types: bool = True) -> str:
    """The structural differences of two models, as a diff of their `describe` texts; empty when there are none."""
    old, new = (list(describe(model, types=types)) for model in (before, after))
    return "\n".join(difflib.unified_diff(old, new, "before", "after", lineterm=""))


def _run(pass_: Pass, model: ir.Model) -> tuple[ir.Model, bool]:
    copy = model.clone()
    result = PassManager([pass_]).run(copy)
    return result.model, result.modified


def _interface(model: ir.Model) -> list[tuple[str | None, str, str]]:
    return [(v.name, str(v.type), str(v.shape)) for v in (*model.graph.inputs, *model.graph.outputs)]


def _bytes(model: ir.Model) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))
