"""Which form each layer takes: the least loss under a bound of bytes, or the fewest bytes.

Losses of layers are noise, and the noise of different layers adds up: so do their sizes. That makes it a knapsack with
one choice for each layer. Where only forms count that no mix of two others beats (the lower convex hull), taking the
steps from form to form in the order of the loss for each byte that they save gives, after any number of steps, the best
choice of its size (Sinha and Zoltners, The Multiple-Choice Knapsack Problem, 1979). What is left of a bound goes to
those layers that gain most from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Choice", "Offer", "Problem", "best_within", "noise_of", "problem_of", "size_of", "steps"]


@dataclass(frozen=True)
class Offer:
    """A form of a layer.

    Attributes:
        form: Its name.
        size: Bytes.
        noise: What it adds to the square of the model's relative error.
    """

    form: str
    size: int
    noise: float


Problem = Sequence[Sequence[Offer]]
"""The forms of each layer."""
Choice = tuple[str, ...]
"""The form of each layer."""


def problem_of(sizes: Sequence[Mapping[str, int]], noises: Sequence[Mapping[str, float]]) -> Problem:
    """The forms of each layer, from their sizes and noises by name."""
    return [[Offer(f, size[f], noise[f]) for f in size] for size, noise in zip(sizes, noises, strict=True)]


def size_of(problem: Problem, choice: Choice) -> int:
    """Bytes of all layers."""
    return sum(_offer(offers, form).size for offers, form in zip(problem, choice, strict=True))


def noise_of(problem: Problem, choice: Choice) -> float:
    """The noise of all layers, if it adds up."""
    return sum(_offer(offers, form).noise for offers, form in zip(problem, choice, strict=True))


def steps(problem: Problem) -> list[Choice]:
    """Choices from the one with the least noise to the one with the fewest bytes, each the best of its size."""
    hulls = [_hull(offers) for offers in problem]
    ways = []
    for layer, hull in enumerate(hulls):
        for place, (large, small) in enumerate(itertools.pairwise(hull)):
            slope = (small.noise - large.noise) / (large.size - small.size)
            ways.append((slope, layer, place, small.form))
    current = [hull[0].form for hull in hulls]
    found = [tuple(current)]
    for _, layer, _, form in sorted(ways):
        current[layer] = form
        found.append(tuple(current))
    return found


def best_within(problem: Problem, bound: int) -> Choice | None:
    """The choice with the least noise that has no more bytes than that; `None` if there is none."""
    fitting = next((choice for choice in steps(problem) if size_of(problem, choice) <= bound), None)
    return None if fitting is None else _filled(problem, fitting, bound - size_of(problem, fitting))


def _filled(problem: Problem, choice: Choice, left: int) -> Choice:
    """Use bytes that are left where they take away most noise."""
    forms = list(choice)
    while True:
        best: tuple[float, int, Offer] | None = None
        for layer, offers in enumerate(problem):
            now = _offer(offers, forms[layer])
            for offer in offers:
                gain = now.noise - offer.noise
                if offer.size - now.size <= left and gain > 0 and (best is None or gain > best[0]):
                    best = gain, layer, offer
        if best is None:
            return tuple(forms)
        _, layer, offer = best
        left -= offer.size - _offer(problem[layer], forms[layer]).size
        forms[layer] = offer.form


def _hull(offers: Sequence[Offer]) -> list[Offer]:
    """The offers that are the best of some price for a byte, the largest first."""
    hull: list[Offer] = []
    for offer in sorted(offers, key=lambda o: (-o.size, o.noise)):
        if hull and offer.size == hull[-1].size:
            continue
        # A smaller one that is no worse makes the larger one useless.
        while hull and offer.noise <= hull[-1].noise:
            hull.pop()
        while len(hull) > 1 and _slope(hull[-1], offer) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(offer)
    return hull


def _slope(large: Offer, small: Offer) -> float:
    return (small.noise - large.noise) / (large.size - small.size)


def _offer(offers: Sequence[Offer], form: str) -> Offer:
    return next(offer for offer in offers if offer.form == form)
