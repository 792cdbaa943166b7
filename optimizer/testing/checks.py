"""What every pass must stand, whatever it does."""

from __future__ import annotations

import difflib

import onnx
import onnx_ir as ir

from optimizer.ir.census import undone_fusions
from optimizer.ir.fingerprint import describe, fingerprint
from optimizer.ir.provenance import label, mark_originals, origins
from optimizer.ir.walk import all_nodes
from optimizer.pass_manager import Pass, PassManager
from optimizer.reference import Oracle, run_reference

__all__ = ["check_pass", "difference"]


def check_pass(pass_: Pass, model: ir.Model, *, seed: int = 0) -> ir.Model:
    """Run a pass on a model and check that it keeps its contract.

    1. `modified` says whether the fingerprint has changed.
    2. The interface is the same: names, types and shapes of inputs and outputs.
    3. The result is valid by ONNX's checker.
    4. It computes the same, on seeded inputs, within the tolerance of `optimizer.comparison`; with symbolic
       dimensions, for two sets of sizes.
    5. A second run changes nothing.
    6. Another run on the same model gives the same bytes.
    7. Nothing is lost: no fused operator is taken apart, unless the class of the pass says so in `undoes`; each node
       still names the original nodes that it stands for; versions of operators and metadata are kept.

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
    _check_values(pass_, model, result, seed)
    _check_nothing_is_lost(pass_, model, result)
    again, modified_again = _run(pass_, result)
    assert not modified_again, f"{pass_} changed its own result:\n{difference(result, again)}"
    other, _ = _run(pass_, model)
    assert _bytes(other) == _bytes(result), f"{pass_} gave different results in two runs"
    return result


def _check_values(pass_: Pass, model: ir.Model, result: ir.Model, seed: int) -> None:
    oracle = Oracle(model.clone(), seed=seed, other_sizes=True)
    tolerance = oracle.tolerance.widened_for(result)
    names = [value.name or "" for value in model.graph.outputs]
    for case in oracle.cases:
        comparison = tolerance.compare(run_reference(result, case.inputs), case.outputs, names)
        assert comparison.passed, f"{pass_} changed output {comparison.output!r}: {comparison.reason}"


def _check_nothing_is_lost(pass_: Pass, model: ir.Model, result: ir.Model) -> None:
    marked = model.clone()
    mark_originals(marked)
    undone = undone_fusions(marked, result, getattr(pass_, "undoes", frozenset()))
    assert not undone, f"{pass_} took fused operators apart: {', '.join(undone)}"
    known = {origin for node in all_nodes(marked) for origin in origins(node)}
    lost = [label(node) for node in all_nodes(result) if not origins(node) or not known.issuperset(origins(node))]
    assert not lost, f"{pass_} left nodes that do not say which original nodes they stand for: {', '.join(lost)}"
    for domain, version in model.opset_imports.items():
        found = result.opset_imports.get(domain)
        kept = found == version or (domain and found is None) or getattr(pass_, "sets_opset", False)
        assert kept, f"{pass_} made opset {version} of {domain!r} {found}"
    assert result.metadata_props == model.metadata_props, f"{pass_} changed the metadata of the model"


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
