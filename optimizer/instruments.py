"""Plug-ins of the pass manager: what is told before and after each pass.

* `PassRecorder` writes down what each pass did, for the report.
* `FingerprintCheck` holds the `modified` of each pass against the model's fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import onnx_ir as ir

from optimizer.errors import PassError
from optimizer.ir.fingerprint import fingerprint
from optimizer.pass_manager import Pass

__all__ = ["FingerprintCheck", "Guard", "Instrument", "PassRecord", "PassRecorder"]

MeasureT = TypeVar("MeasureT")


class Instrument(Protocol):
    """What the pass manager calls around each pass; in a fixpoint group, around each pass inside it."""

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Called before the pass sees the model."""
        ...

    def after_pass(self, pass_: Pass, model: ir.Model, modified: bool, seconds: float) -> None:
        """Called after the pass; `seconds` is the time of the pass alone."""
        ...


class Guard(Protocol):
    """Judges what each pass did. The pass manager takes back what a rejected one did, and goes on without it."""

    def accepts(self, pass_: Pass, before: ir.Model, after: ir.Model, modified: bool) -> bool:
        """Whether the model after the pass is to be kept.

        Args:
            pass_: It ran without an error.
            before: A copy of the model as it was before.
            after: The model as it is.
            modified: What the pass says of whether it changed the model.
        """
        ...

    def failed(self, pass_: Pass, before: ir.Model, error: PassError) -> None:
        """Told when the pass failed; the model becomes what it was before in any case."""
        ...


@dataclass(frozen=True)
class PassRecord(Generic[MeasureT]):
    """What one run of one pass did.

    Attributes:
        pass_name: The registered name.
        pipeline: The pass with its options, as a pipeline string.
        modified: Whether it changed the model.
        seconds: How long it took.
        before: What `PassRecorder.measure` gave before it.
        after: The same after it; the same object as `before` when the pass changed nothing.
    """

    pass_name: str
    pipeline: str
    modified: bool
    seconds: float
    before: MeasureT
    after: MeasureT


class PassRecorder(Generic[MeasureT]):
    """Keeps one `PassRecord` for each pass that ran.

    Args:
        measure: Called on the model at the start and after each pass that changed it; its results are kept in the
            records.
    """

    def __init__(self, measure: Callable[[ir.Model], MeasureT]) -> None:
        self.records: list[PassRecord[MeasureT]] = []
        self._measure = measure
        self._last: MeasureT | None = None

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Measure the model as it comes in, once."""
        del pass_
        if self._last is None:
            self._last = self._measure(model)

    def after_pass(self, pass_: Pass, model: ir.Model, modified: bool, seconds: float) -> None:
        """Measure again if the pass changed the model, and write the record."""
        before = self._last
        assert before is not None, "before_pass comes first"
        after = self._measure(model) if modified else before
        self._last = after
        self.records.append(PassRecord(pass_.name, str(pass_), modified, seconds, before, after))


class FingerprintCheck:
    """Raises a `PassError` when a pass says that it changed the model and did not, or the other way round."""

    def __init__(self) -> None:
        self._before = ""

    def before_pass(self, pass_: Pass, model: ir.Model) -> None:
        """Remember what the model looks like."""
        del pass_
        self._before = fingerprint(model)

    def after_pass(self, pass_: Pass, model: ir.Model, modified: bool, seconds: float) -> None:
        """Compare."""
        del seconds
        changed = fingerprint(model) != self._before
        if changed != modified:
            truth = "changed" if changed else "did not change"
            raise PassError(f"says modified={modified} but {truth} the model", pass_name=pass_.name)
