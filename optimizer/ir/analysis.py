"""What was found out about a model, kept until the model changes: most passes of a pipeline change nothing.

Inside `keep_analyses(model)`, `analyse(Shapes, model)` gives the same `Shapes` again and again, until somebody says
`changed(model)`. `Editor` says so at each change that it makes, and the pass manager after each pass that made one.
What is known by then
to be out of date is handed to the next analysis, which may take from it what still holds. Outside, every question is
answered anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import onnx_ir as ir

__all__ = ["analyse", "changed", "keep_analyses"]

Result = TypeVar("Result")


@dataclass(eq=False)
class _Kept:
    model: ir.Model
    results: dict[Callable[..., Any], Any] = field(default_factory=dict)
    outdated: dict[Callable[..., Any], Any] = field(default_factory=dict)


_KEPT: ContextVar[_Kept | None] = ContextVar("kept analyses", default=None)


@contextmanager
def keep_analyses(model: ir.Model) -> Iterator[None]:
    """Keep what is found out about `model` inside; whoever changes it there says so with `changed`."""
    token = _KEPT.set(_Kept(model))
    try:
        yield
    finally:
        _KEPT.reset(token)


def analyse(analysis: Callable[[ir.Model, Result | None], Result], model: ir.Model) -> Result:
    """What `analysis` finds out about `model`, or found out before if the model has not changed since.

    Args:
        analysis: Called with the model and what it gave before the model changed, or `None`.
        model: The model.
    """
    kept = _KEPT.get()
    if kept is None or kept.model is not model:
        return analysis(model, None)
    if analysis not in kept.results:
        kept.results[analysis] = analysis(model, kept.outdated.pop(analysis, None))
    result: Result = kept.results[analysis]
    return result


def changed(model: ir.Model) -> None:
    """What was found out about `model` is out of date."""
    kept = _KEPT.get()
    if kept is not None and kept.model is model and kept.results:
        kept.outdated.update(kept.results)
        kept.results.clear()
