"""The stage of `optimize()` in which the passes run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.instruments import Instrument, PassRecorder
from optimizer.ir.costs import model_costs
from optimizer.ir.figures import Costs
from optimizer.ir.near_miss import NearMiss
from optimizer.ir.usage import measure_usage
from optimizer.layer_errors import LayerError, ranked
from optimizer.pass_manager import Pass, PassManager
from optimizer.quantization_report import LayerErrorRecorder
from optimizer.removals import RemovalRecorder
from optimizer.report import PassRow
from optimizer.usage import Usage
from optimizer.verify_each import VerifyEach

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.reference import Oracle

__all__ = ["FAULT_FOLDER", "PassesRun", "run_passes"]

FAULT_FOLDER = Path("tersor-faults")
"""Where `verify="each"` saves the smallest model that shows what a pass did wrong: in the current folder."""


@dataclass(frozen=True)
class PassesRun:
    """What the passes did.

    Attributes:
        before: Costs of the model as it came in.
        after: Costs of what the passes left.
        usage_before: Where work and memory of the model as it came in go.
        usage: The same of what the passes left.
        rows: One for each run of a pass.
        near_misses: Where a fusion nearly fired, and why it did not.
        notes: One for each pass that was rejected.
        removed_by: The pass that removed an original node, by the node's label.
        layers: What the rounding of each quantized layer costs, those that cost most first.
    """

    before: Costs
    after: Costs
    usage_before: Usage
    usage: Usage
    rows: tuple[PassRow, ...]
    near_misses: tuple[NearMiss, ...]
    notes: tuple[str, ...]
    removed_by: Mapping[str, str]
    layers: tuple[LayerError, ...] = ()


def run_passes(
    model: ir.Model, pipeline: Sequence[Pass], oracle: Oracle | None, verify: str, cache_bytes: int
) -> PassesRun:
    """Run a pipeline.

    Args:
        model: Changed in place.
        pipeline: The passes.
        oracle: What the model computes, if that is known.
        verify: `"each"` checks every pass against the oracle, and rolls back what a faulty one did.
        cache_bytes: The last cache of the machine, for the estimate of the energy.

    Raises:
        PassError: A pass failed, and `verify` is not `"each"`.
    """
    shapes = oracle.input_shapes if oracle is not None else {}
    before = model_costs(model, shapes)
    usage_before = measure_usage(model, cache_bytes, shapes)
    removals = RemovalRecorder()
    recorder = PassRecorder(lambda changed: model_costs(changed, shapes))
    rounding = LayerErrorRecorder([] if oracle is None else [case.inputs for case in oracle.cases])
    instruments: list[Instrument] = [recorder, removals, rounding]
    if verify != "each" or oracle is None:
        result = PassManager(pipeline).run(model, instruments)
        errors: Sequence[float | None] = [None] * len(recorder.records)
        notes: tuple[str, ...] = ()
    else:
        with VerifyEach(oracle, FAULT_FOLDER) as guard:
            result = PassManager(pipeline).run(model, instruments, guard)
        errors, notes = guard.errors, tuple(guard.notes)
    rows = tuple(
        PassRow(record.pipeline, record.modified, record.seconds, record.before, record.after, error)
        for record, error in zip(recorder.records, errors, strict=True)
    )
    after = rows[-1].after if rows else before
    usage = measure_usage(model, cache_bytes, shapes)
    return PassesRun(
        before,
        after,
        usage_before,
        usage,
        rows,
        result.near_misses,
        (*notes, *rounding.notes),
        removals.removed_by,
        tuple(ranked(rounding.rows)),
    )
