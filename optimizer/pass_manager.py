"""The contract of a pass, and the manager that runs a list of them.

A pass is a frozen dataclass on `Pass`; its fields are its options. It prints back as the string that `parse_pipeline`
reads:

    fold-constants{max_growth_bytes=1024},fixpoint(merge-reshapes,remove-unused){max_rounds=4}

The manager only runs passes in order and keeps provenance. Timing, measuring and checking are instruments
(`optimizer.instruments`), so that a run without them costs nothing more than its passes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from optimizer.errors import PassError, TersorError
from optimizer.ir import provenance
from optimizer.ir.analysis import analyse, changed, keep_analyses
from optimizer.ir.near_miss import NearMiss, RewriteResult
from optimizer.memory import collector_paused
from optimizer.pipeline_text import PipelineParser, format_options

if TYPE_CHECKING:
    from optimizer.instruments import Guard, Instrument

__all__ = ["Fixpoint", "Pass", "PassManager", "RunResult", "call_pass", "format_pipeline", "parse_pipeline"]

_PASS_BUGS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    ir.passes.InvariantError,
)
"""What a faulty pass may raise; the manager turns it into a `PassError` that names the pass."""

_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclasses.dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """Base of every pass.

    A subclass is a frozen dataclass too. It implements `call(model)`, which changes the model in place and says in
    its result whether it did. Running it a second time must change nothing. `passes/README.md` says what else a pass
    may assume and must keep.
    """

    @property
    def name(self) -> str:
        """The class name in kebab case: `FoldConstants` is `fold-constants`."""
        return _WORD_BOUNDARY.sub("-", type(self).__name__).lower()

    def options(self) -> dict[str, bool | int | float | str]:
        """The options that differ from their defaults. A field that does not compare, such as data, is no option."""
        changed = {}
        for field in dataclasses.fields(self):
            if not field.compare:
                continue
            value = getattr(self, field.name)
            if value != field.default:
                changed[field.name] = value
        return changed

    def __str__(self) -> str:
        return self.name + format_options(self.options())


@dataclasses.dataclass(frozen=True)
class Fixpoint(Pass):
    """Runs its passes in turn until none of them changes the model any more.

    Attributes:
        passes: The passes, in order.
        max_rounds: How often each pass runs at most.
    """

    passes: tuple[Pass, ...] = ()
    max_rounds: int = 8

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run the group on its own, without a manager and so without instruments."""
        return ir.passes.PassResult(model, self.run_with(lambda pass_: pass_(model).modified))

    def run_with(self, run: Callable[[Pass], bool]) -> bool:
        """Run the group through `run`, which runs one pass and says whether it changed the model.

        The group ends as soon as every pass has seen the model as it is, so the last round may be a part of one.
        """
        modified = False
        settled = 0
        for pass_ in self._schedule():
            if run(pass_):
                modified = True
                settled = 0
            else:
                settled += 1
            if settled == len(self.passes):
                break
        return modified

    def _schedule(self) -> Iterator[Pass]:
        for _ in range(self.max_rounds):
            yield from self.passes

    def __str__(self) -> str:
        rounds = {} if self.max_rounds == Fixpoint.max_rounds else {"max_rounds": self.max_rounds}
        return f"fixpoint({format_pipeline(self.passes)}){format_options(rounds)}"


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a run of the manager did.

    Attributes:
        model: The model that was passed in, changed in place.
        modified: Whether any pass changed it.
        near_misses: Where a pass nearly fired and why it did not, by the last run of each pass.
    """

    model: ir.Model
    modified: bool
    near_misses: tuple[NearMiss, ...] = ()


class PassManager:
    """Runs passes in order.

    Args:
        passes: The passes; a `Fixpoint` among them runs its own until they settle.
    """

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes = tuple(passes)

    def run(self, model: ir.Model, instruments: Sequence[Instrument] = (), guard: Guard | None = None) -> RunResult:
        """Run every pass on the model, in place.

        Args:
            model: Its nodes are in topological order, as ONNX demands.
            instruments: Told before and after each pass, in this order.
            guard: Judges each pass. What a rejected one did is rolled back, and it does not run again.

        Raises:
            PassError: A pass failed and there is no guard, or an instrument found that it broke its contract.
        """
        rejected: set[str] = set()
        near_misses: dict[str, list[NearMiss]] = {}
        version = 0
        seen: dict[str, int] = {}

        def run(pass_: Pass) -> bool:
            nonlocal version
            if isinstance(pass_, Fixpoint):
                return pass_.run_with(run)
            # What found nothing to do in the model as it is finds nothing again.
            if str(pass_) in rejected or seen.get(str(pass_)) == version:
                return False
            result = _run_one(pass_, model, instruments, guard)
            if result is None:
                rejected.add(str(pass_))
                return False
            if isinstance(result, RewriteResult):
                near_misses[str(pass_)] = [
                    dataclasses.replace(miss, pass_name=pass_.name) for miss in result.near_misses
                ]
            if result.modified:
                version += 1
            else:
                seen[str(pass_)] = version
            return result.modified

        provenance.mark_originals(model)
        # The copies of the model that a guard is given are garbage that must not pile up.
        with keep_analyses(model), collector_paused() if guard is None else contextlib.nullcontext():
            changes = [run(pass_) for pass_ in self.passes]
        return RunResult(model, any(changes), tuple(miss for found in near_misses.values() for miss in found))

    def __str__(self) -> str:
        return format_pipeline(self.passes)


def _named(miss: NearMiss, pass_: Pass) -> NearMiss:
    return dataclasses.replace(miss, pass_name=pass_.name)


def _run_one(
    pass_: Pass, model: ir.Model, instruments: Sequence[Instrument], guard: Guard | None
) -> ir.passes.PassResult | None:
    """Run a pass and tell the instruments; `None` if the guard rejected it."""
    for instrument in instruments:
        instrument.before_pass(pass_, model)
    before = model.clone() if guard is not None else None
    result: ir.passes.PassResult | None = None
    seconds = 0.0
    try:
        result, seconds = call_pass(pass_, model)
    except PassError as error:
        if guard is None or before is None:
            raise
        guard.failed(pass_, before, error)
    if guard is not None and before is not None:
        if result is not None and not guard.accepts(pass_, before, model, result.modified):
            result = None
        if result is None:
            _restore(model, before)
    for instrument in instruments:
        instrument.after_pass(pass_, model, result is not None and result.modified, seconds)
    return result


def call_pass(pass_: Pass, model: ir.Model) -> tuple[ir.passes.PassResult, float]:
    """Run one pass in place, and write into the nodes that it made that it did.

    Returns:
        What the pass gave, and its seconds.

    Raises:
        PassError: The pass failed.
    """
    before = analyse(_snapshot, model)
    start = time.perf_counter()
    try:
        result = pass_(model)
    except TersorError:
        raise
    except _PASS_BUGS as error:
        raise PassError(f"failed with {type(error).__name__}: {error}", pass_name=pass_.name) from error
    seconds = time.perf_counter() - start
    if result.modified:
        before.mark_changes(model, pass_.name)
        changed(model)
    return result, seconds


def _snapshot(model: ir.Model, outdated: provenance.Snapshot | None) -> provenance.Snapshot:
    del outdated
    return provenance.Snapshot(model)


def _restore(model: ir.Model, before: ir.Model) -> None:
    model.graph = before.graph
    model.functions.clear()
    model.functions.update(before.functions)
    model.ir_version = before.ir_version
    model.metadata_props.clear()
    model.metadata_props.update(before.metadata_props)
    changed(model)


def format_pipeline(passes: Iterable[Pass]) -> str:
    """The string that `parse_pipeline` turns into the same passes."""
    return ",".join(str(pass_) for pass_ in passes)


def parse_pipeline(text: str, registry: Mapping[str, type[Pass]]) -> list[Pass]:
    """Read passes from a string such as `"fold-constants,fixpoint(merge-reshapes,remove-unused){max_rounds=4}"`.

    Args:
        text: Names in kebab case, separated by commas; options in braces; groups in parentheses after `fixpoint`.
        registry: The passes by name; usually `passes.registry.PASSES`.

    Raises:
        PipelineError: The string is malformed, or names a pass or an option that does not exist.
    """
    parser = PipelineParser(text, registry, Fixpoint)
    passes = parser.sequence()
    parser.expect_end()
    return passes
