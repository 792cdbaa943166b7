"""`memory_budget`: how it is written, and the stage of `optimize()` that keeps to it.

The passes predict what a graph needs; what a compiled one allocates is known when it was compiled. So a graph is cut
until the prediction fits, compiled, and cut finer where the compiler allocates more than was predicted. A budget that
cannot be met is refused when the finest pieces were compiled: what they allocate is the smallest that can be.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.errors import BudgetError, InputError, UnsupportedError
from optimizer.executable import Executable, run_executable
from optimizer.text import size

if TYPE_CHECKING:
    import onnx_ir as ir

    from optimizer.graph_stage import PassesRun

__all__ = ["Figures", "Fitted", "Stage", "check_sizes", "fit", "joined", "parse_budget"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_ATTEMPTS = 4
_STEP_BELOW = 0.98
"""How much finer than in proportion the next attempt is, so that it is the last one."""
_RUNS = 3


@dataclass(frozen=True)
class Figures:
    """What is predicted of a graph.

    Attributes:
        peak: Bytes of intermediate results and outputs that are alive at one time.
        seconds: Its time, on no machine in particular: for ratios.
        pieces: How many pieces its largest result is put together from; 1 if it is whole.
        regions: How many results are put together from pieces.
    """

    peak: int
    seconds: float
    pieces: int
    regions: int


@dataclass(frozen=True)
class Stage:
    """What `fit` is given to work with.

    Attributes:
        cut: Cuts a graph in place until the prediction is within so many bytes, and says what was done; raises a
            `BudgetError` if that cannot be.
        predict: The figures of a graph.
        compile: Compiles a graph.
        inputs: To measure the time with; `None` to measure nothing.
        num_threads: For measuring.
        detail: Is told what is being done.
    """

    cut: Callable[[ir.Model, int], PassesRun]
    predict: Callable[[ir.Model], Figures]
    compile: Callable[[ir.Model], Executable]
    inputs: Sequence[Any] | None
    num_threads: int
    detail: Callable[[str], None] = lambda text: None


@dataclass(frozen=True)
class Fitted:
    """A graph that fits.

    Attributes:
        model: The graph.
        executable: Compiled.
        run: What the passes did to cut it; `None` where that was not needed.
        notes: Lines for the report.
    """

    model: ir.Model
    executable: Executable
    run: PassesRun | None
    notes: tuple[str, ...]


def parse_budget(budget: object) -> int | None:
    """The bytes that a budget says: an `int`, or `"64MB"`, `"1.5 GiB"`; `None` for none.

    Raises:
        InputError: It is nothing of the kind, or not positive.
    """
    if budget is None:
        return None
    found = budget
    if isinstance(budget, str):
        match = _FORM.fullmatch(budget)
        unit = None if match is None else _UNITS.get(match.group(2).upper())
        found = None if match is None or unit is None else int(float(match.group(1)) * unit)
    if isinstance(found, bool) or not isinstance(found, int) or found <= 0:
        raise InputError(f'memory_budget must be a positive number of bytes, or one such as "512MB", not {budget!r}')
    return found


def check_sizes(model: ir.Model) -> None:
    """Refuse a graph whose memory is not known before it runs.

    Raises:
        UnsupportedError: An input has a symbolic size.
    """
    for value in model.graph.inputs:
        if value.shape is None or not all(isinstance(dim, int) for dim in value.shape):
            shape = "unknown" if value.shape is None else str(value.shape)
            raise UnsupportedError(
                f"memory_budget needs inputs of known sizes, and {value.name!r} has the shape {shape}: "
                "export the model with fixed sizes"
            )


def fit(model: ir.Model, budget: int, stage: Stage) -> Fitted:
    """Cut and compile until what is allocated is within the budget, in as few attempts as that takes.

    Args:
        model: Not changed.
        budget: Bytes.
        stage: What to do it with.

    Raises:
        BudgetError: Nothing that was tried fits; the error names the smallest budget that would.
    """
    whole = stage.predict(model)
    aim = min(budget, whole.peak - 1)
    first = _cut(model, aim, stage) if whole.peak > budget else None
    stage.detail("compiling it whole, to compare with" if first else "compiling")
    reference = stage.compile(model) if stage.inputs is not None or first is None else None
    if reference is not None and _allocated(reference, whole) <= budget:
        peak = size(_allocated(reference, whole))
        return Fitted(model, reference, None, (f"memory budget {size(budget)}: kept as it is, the peak is {peak}",))
    for attempt in range(_ATTEMPTS):
        attempt_aim = 1 if attempt == _ATTEMPTS - 1 else aim
        candidate, run, finest = first if attempt == 0 and first else _cut(model, max(attempt_aim, 1), stage)
        stage.detail("compiling the pieces")
        executable = stage.compile(candidate)
        figures = stage.predict(candidate)
        reached = _allocated(executable, figures)
        if reached <= budget:
            notes = _notes(budget, whole, figures, reference, executable, stage)
            return Fitted(candidate, executable, run, notes)
        if finest:
            break
        aim = int(min(aim, figures.peak) * budget / reached * _STEP_BELOW)
    raise _refusal(budget, reached)


def _cut(model: ir.Model, aim: int, stage: Stage) -> tuple[ir.Model, PassesRun, bool]:
    """The graph cut to an aim in bytes, or as fine as it can be, and whether it is the latter.

    Pieces that are predicted to need far more than a budget are compiled all the same: what kernels take for themselves
    is not predicted, and a refusal has to name a budget that can be met.
    """
    stage.detail(f"looking for pieces that need {size(aim)}" if aim > 1 else "looking for the finest pieces")
    candidate = model.clone()
    try:
        return candidate, stage.cut(candidate, aim), aim == 1
    except BudgetError as error:
        candidate = model.clone()
        return candidate, stage.cut(candidate, error.smallest), True


def _refusal(budget: int, smallest: int) -> BudgetError:
    named = f"{smallest} bytes ({size(smallest)})"
    return BudgetError(
        f"a memory budget of {size(budget)} cannot be met: the smallest that can is {named}", smallest=smallest
    )


def _allocated(executable: Executable, figures: Figures) -> int:
    """What a run allocates; what is predicted, where the runtime does not say."""
    memory = getattr(executable, "memory", None)
    return figures.peak if memory is None else int(memory.peak)


def _notes(
    budget: int, whole: Figures, cut: Figures, reference: Executable | None, executable: Executable, stage: Stage
) -> tuple[str, ...]:
    price = cut.seconds / whole.seconds - 1 if whole.seconds else 0.0
    notes = [
        f"memory budget {size(budget)}: predicted peak {size(whole.peak)} before, {size(cut.peak)} after; "
        f"{cut.regions} results are computed in up to {cut.pieces} pieces, for {price:+.1%} of the time (predicted)"
    ]
    if reference is not None and stage.inputs is not None:
        before, after = _times(reference, executable, stage)
        peaks = f"peak {size(_allocated(reference, whole))} before, {size(_allocated(executable, cut))} after, "
        notes.append(f"memory budget, measured: {peaks}for {after / before - 1:+.1%} of the time")
    return tuple(notes)


def _times(reference: Executable, executable: Executable, stage: Stage) -> tuple[float, float]:
    """The shortest of a few runs of each, in turn, after one that does not count."""
    assert stage.inputs is not None, "there is something to run"
    inputs = [np.ascontiguousarray(x) if isinstance(x, np.ndarray) and x.ndim else x for x in stage.inputs]
    shortest = [float("inf"), float("inf")]
    for turn in range(_RUNS + 1):
        for index, each in enumerate((reference, executable)):
            start = time.perf_counter()
            run_executable(each, inputs, stage.num_threads)
            if turn:
                shortest[index] = min(shortest[index], time.perf_counter() - start)
    return shortest[0], shortest[1]


def joined(first: PassesRun, second: PassesRun | None) -> PassesRun:
    """Two runs of passes, one after the other, as one."""
    if second is None:
        return first
    return dataclasses.replace(
        first,
        after=second.after,
        usage=second.usage,
        rows=(*first.rows, *second.rows),
        near_misses=(*first.near_misses, *second.near_misses),
        notes=(*first.notes, *second.notes),
        removed_by={**first.removed_by, **second.removed_by},
    )
