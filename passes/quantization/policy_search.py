"""The search for the mix of forms that a budget asks for. Effects are measured, and so is what they add up to.

1. Each layer alone in each form: the error of the model's worst output, squared, is the noise that it adds. Where that
   would be too many runs, each layer is run in one form: see `passes.quantization.policy_effects`.
2. If noises added up, the knapsack of `passes.quantization.knapsack` would know the best mix of each size.
3. They add up roughly. So mixes are run as a whole. Under a bound of bytes, each layer of the mix is then put back into
   float once, if there are runs left for it: what that takes away from the error of the mix corrects the layer's noise,
   and the choice is made again with it. The mix that measures best is taken, all layers in one form among those tried,
   if that fits.
4. With a bound of the error, or a metric, the smallest mix within it is searched for by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from optimizer.layer_board import FLOAT, LayerBoard, Unit
from passes.quantization.knapsack import Choice, Problem, best_within, noise_of, problem_of, size_of, steps
from passes.quantization.policy_effects import estimated_effects, step_of

__all__ = ["Search", "relative_error"]

_LARGEST_CORRECTION = 16.0
"""Of a noise: beyond it, what was measured is chance."""

Progress = Callable[[int, int, str], None]


def relative_error(results: Sequence[Sequence[Any]], exact: Sequence[Sequence[Any]]) -> float:
    """The norm of the difference over the norm, of the worst output, over all runs together.

    Outputs of integers or truth values count by how many elements differ. What is no tensor is left out, as are
    elements that are not finite in the exact result.

    Args:
        results: For each run, the outputs.
        exact: The same, as they should be.
    """
    worst = 0.0
    for output in range(len(exact[0])):
        noise = signal = 0.0
        for found, right in ((r[output], e[output]) for r, e in zip(results, exact, strict=True)):
            if isinstance(right, np.ndarray) and right.dtype.kind in "fcbiu":
                more = _noise(found, right)
                noise, signal = noise + more[0], signal + more[1]
        if noise:
            worst = max(worst, math.sqrt(noise / signal) if signal else math.inf)
    return worst


def _noise(found: Any, right: Any) -> tuple[float, float]:
    if found.shape != right.shape:
        return math.inf, 1.0
    if right.dtype.kind in "biu":
        return float((found != right).sum()), float(right.size)
    finite = np.isfinite(right)
    found, right = found[finite].astype(np.float64), right[finite].astype(np.float64)
    if not np.isfinite(found).all():
        return math.inf, 1.0
    return float(np.square(found - right).sum()), float(np.square(right).sum())


class Search:
    """Measures forms of layers, and mixes of them.

    Args:
        board: Of the model.
        units: Its layers, each with the forms that it may take.
        sets: Inputs to measure with.
        progress: Called after each run with how many are done, how many there are, and what it was.
        runs: Of mixes on all sets, about as many as there is time for.
    """

    def __init__(
        self, board: LayerBoard, units: Sequence[Unit], allowed: Sequence[Sequence[str]], sets: Sequence[list[Any]],
        progress: Progress | None, runs: float = math.inf,
    ) -> None:  # fmt: skip
        self._board = board
        self._units = units
        self._allowed = allowed
        self._sets = sets
        self._runs = runs
        self._tell = progress or (lambda done, total, name: None)
        self._exact = [board.run(given) for given in sets]
        self._errors: dict[Choice, float] = {}
        self.effects = self._measure()
        noises = [{form: effect**2 for form, effect in of.items()} for of in self.effects]
        self._sizes = [{form: unit.sizes[form] for form in forms} for unit, forms in zip(units, allowed, strict=True)]
        self.problem: Problem = problem_of(self._sizes, noises)

    def error(self, choice: Choice) -> float:
        """The relative error of a mix, measured."""
        if choice not in self._errors:
            self._errors[choice] = relative_error([self._board.run(s, choice) for s in self._sets], self._exact)
        return self._errors[choice]

    def predicted(self, choice: Choice) -> float:
        """The relative error that the effects of the layers add up to."""
        return math.sqrt(noise_of(self.problem, choice))

    def within_bytes(self, bound: int) -> Choice | None:
        """The mix that loses least with so many bytes for the layers; `None` if there is none so small."""
        first = best_within(self.problem, bound)
        if first is None:
            return None
        found = [first, *(choice for choice in self._uniform() if size_of(self.problem, choice) <= bound)]
        best = min(found, key=lambda choice: (self.error(choice), choice))
        if len(self._errors) + len(self._units) > self._runs:
            return best
        again = best_within(self._corrected(best), bound) or best
        return min(best, again, key=lambda choice: (self.error(choice), choice))

    def smallest(self, good: Callable[[Choice], bool]) -> Choice | None:
        """The smallest mix that is good; `None` if the one that loses least is not.

        Mixes are searched through by bisection, so that of a few that are only just good, or not, one may be missed.
        """
        ways = steps(self.problem)
        if not good(ways[0]):
            return None
        low, high = 0, len(ways)  # the one at `low` is good, that at `high` is not
        while high - low > 1:
            middle = (low + high) // 2
            self._tell(low, len(ways), f"a mix of {size_of(self.problem, ways[middle])} bytes")
            low, high = (middle, high) if good(ways[middle]) else (low, middle)
        return ways[low]

    def _measure(self) -> list[dict[str, float]]:
        """The effect of each layer in each form."""
        total = sum(form != FLOAT for forms in self._allowed for form in forms)
        if total > self._runs and not any(math.isnan(step) for step in self._steps()):
            return estimated_effects(self._units, self._allowed, self.error, self._tell)
        done = 0
        effects: list[dict[str, float]] = []
        for index, (unit, forms) in enumerate(zip(self._units, self._allowed, strict=True)):
            effects.append({})
            for form in forms:
                alone = tuple(form if i == index else FLOAT for i in range(len(self._units)))
                effects[-1][form] = 0.0 if form == FLOAT else self.error(alone)
                if form != FLOAT:
                    done += 1
                    self._tell(done, total, f"{unit.name} in {form}")
        return effects

    def _steps(self) -> Iterator[float]:
        for unit, forms in zip(self._units, self._allowed, strict=True):
            yield from (step_of(unit, form) for form in forms if form != FLOAT)

    def _uniform(self) -> list[Choice]:
        """All layers in one form, where they can take it; the others in what loses least."""
        least = steps(self.problem)[0]
        forms = dict.fromkeys(form for forms in self._allowed for form in forms)
        return [
            tuple(form if form in allowed else other for allowed, other in zip(self._allowed, least, strict=True))
            for form in forms
        ]

    def _corrected(self, choice: Choice) -> Problem:
        """Noises as they are in a mix: what it gains when one layer is put back, over what that layer costs alone."""
        whole = self.error(choice) ** 2
        noises = []
        for index, offers in enumerate(self.problem):
            alone = next(offer.noise for offer in offers if offer.form == choice[index])
            factor = 1.0
            if choice[index] != FLOAT and alone > 0:
                back = tuple(FLOAT if i == index else form for i, form in enumerate(choice))
                gain = whole - self.error(back) ** 2
                factor = min(max(gain / alone, 1 / _LARGEST_CORRECTION), _LARGEST_CORRECTION)
                self._tell(index + 1, len(choice), f"{self._units[index].name} in the mix")
            noises.append({offer.form: offer.noise * factor for offer in offers})
        return problem_of(self._sizes, noises)
