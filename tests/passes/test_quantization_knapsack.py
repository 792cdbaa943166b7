"""The knapsack is the best of all choices, but for what the last step leaves of the bound."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from passes.quantization.knapsack import Offer, best_within, noise_of, size_of, steps

OFFERS = st.lists(
    st.builds(Offer, st.sampled_from("abcd"), st.integers(1, 40), st.integers(0, 50).map(float)),
    min_size=1,
    max_size=4,
    unique_by=lambda offer: offer.form,
)
PROBLEMS = st.lists(OFFERS, min_size=1, max_size=4)


@given(PROBLEMS, st.integers(1, 160))
def test_within_a_bound(problem: list[list[Offer]], bound: int) -> None:
    all_choices = list(itertools.product(*([offer.form for offer in offers] for offers in problem)))
    fitting = [choice for choice in all_choices if size_of(problem, choice) <= bound]
    found = best_within(problem, bound)
    assert (found is None) == (not fitting)
    if found is not None:
        assert size_of(problem, found) <= bound
        best = min(noise_of(problem, choice) for choice in fitting)
        # One layer is between two steps: what its step costs is the most that is lost.
        assert noise_of(problem, found) - best <= max(
            max(o.noise for o in of) - min(o.noise for o in of) for of in problem
        )


@given(PROBLEMS)
def test_each_step_is_the_best_of_its_size(problem: list[list[Offer]]) -> None:
    all_choices = list(itertools.product(*([offer.form for offer in offers] for offers in problem)))
    ways = steps(problem)
    sizes = [size_of(problem, choice) for choice in ways]
    assert sizes == sorted(sizes, reverse=True)
    for choice, size in zip(ways, sizes, strict=True):
        best = min(noise_of(problem, other) for other in all_choices if size_of(problem, other) <= size)
        assert noise_of(problem, choice) == best
    assert sizes[-1] == sum(min(offer.size for offer in offers) for offers in problem)


def test_what_is_left_is_used() -> None:
    problem = [[Offer("large", 10, 0), Offer("small", 2, 9)], [Offer("large", 5, 0), Offer("small", 1, 1)]]
    # The steps make the second layer small, then the first: 6 bytes would be left.
    assert steps(problem) == [("large", "large"), ("large", "small"), ("small", "small")]
    assert best_within(problem, 10) == ("small", "large")
