"""The stage of `optimize(tune=...)`: what is known from the cache, inputs to measure with, and the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from backends.base import Progress
from optimizer.cache import open_store
from optimizer.cache.store import Unusable
from optimizer.cache.winners import Winners
from optimizer.errors import ExecutionError, InputError
from optimizer.executable import Executable
from optimizer.sample_inputs import candidate_inputs
from optimizer.target import Target, detect_cpu
from optimizer.tuning import Tuning

if TYPE_CHECKING:
    import onnx_ir as ir

    from backends.relax.tuning import Tunable

__all__ = ["TuningStage"]


class TuningStage:
    """What one call of `optimize()` does to tune.

    Attributes:
        target: Where the model is compiled for at first: with what is known of the machine already.
    """

    def __init__(self, limit: float, target: Target, cache: object, precision: str) -> None:
        """Read what is known.

        Args:
            limit: Seconds.
            target: This machine.
            cache: As `optimize()` was given it.
            precision: Of the model.
        """
        try:
            store = open_store(cache)
        except Unusable:
            store = None
        self._limit = limit
        self._cpu = target.cpu or detect_cpu()
        self._winners = Winners(store, self._cpu, precision)
        self._target = target

    @property
    def target(self) -> Target:
        """See the class."""
        return self._with(self._winners.values)

    def run(
        self,
        executable: Executable,
        compile_for: Callable[[Target], Executable],
        inputs: Sequence[Any] | None,
        compile_seconds: float,
        progress: Progress,
    ) -> tuple[Executable, Tuning]:
        """Measure, and give the faster model.

        Args:
            executable: The model as it was compiled for `target`.
            compile_for: Compiles it for another one.
            inputs: To run it with; `None` if there are none.
            compile_seconds: What compiling took.
            progress: Told what is going on.
        """
        from backends.relax.tuning import Tuner

        if inputs is None:
            note = "tune: no inputs were found that the model runs with; give example_inputs"
            return executable, Tuning(self._limit, 0.0, 0, note=note)
        given = [np.ascontiguousarray(x) if isinstance(x, np.ndarray) and x.ndim else x for x in inputs]
        tuner = Tuner(
            self._limit,
            self._winners,
            lambda choices: cast("Tunable", compile_for(self._with(choices))),
            given,
            self._cpu.cores,
            progress,
        )
        return tuner.tune(cast("Tunable", executable), compile_seconds)

    def inputs(self, executable: Executable, graph: ir.Graph, seed: int, example: Sequence[Any] | None) -> Any:
        """Made-up inputs that the model runs with; `None` if none are found."""
        for inputs in candidate_inputs(graph, seed, example):
            try:
                executable.run(inputs, self._cpu.cores)
            except (ExecutionError, InputError):
                continue
            return inputs
        return None

    def _with(self, choices: dict[str, int]) -> Target:
        return replace(self._target, choices=tuple(sorted(choices.items())))
