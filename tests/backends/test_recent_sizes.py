"""What the run remembers of symbolic sizes, and how it computes what follows from them."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends.relax import recent
from backends.relax.memory import Buffer, Memory, Slot
from backends.relax.recent import Recent
from backends.relax.size_value import Formula, Formulas, evaluate, with_derived
from backends.relax.storage import Storage

LEAVES: st.SearchStrategy[Formula] = st.integers(0, 9) | st.sampled_from(["n", "h", "w"])
OPERATORS = st.sampled_from(["+", "-", "*", "max", "min", "<", "<=", "==", "!=", "and", "or"])


def combined(parts: st.SearchStrategy[Formula]) -> st.SearchStrategy[Formula]:
    divided = st.tuples(st.sampled_from(["//", "%", "/"]), parts, st.integers(1, 5)).map(list)
    chosen = st.tuples(st.just("if"), parts, parts, parts).map(list)
    return st.tuples(OPERATORS, parts, parts).map(list) | divided | chosen


@given(formulas=st.lists(st.recursive(LEAVES, combined, max_leaves=8), max_size=6), n=st.integers(0, 20))
def test_formulas_with_common_parts_have_their_own_values(formulas: list[Formula], n: int) -> None:
    sizes = {"n": n, "h": 7}  # nobody has shown w yet
    assert Formulas(formulas).values(sizes) == [evaluate(formula, sizes) for formula in formulas]


def test_a_branch_that_is_not_taken_may_divide_by_nothing() -> None:
    formula: Formula = ["if", ["==", "n", 0], 5, ["//", 12, "n"]]
    assert [Formulas([formula]).values({"n": n}) for n in (0, 4)] == [[5], [3]]


@given(a=st.integers(-50, 50), b=st.integers(-9, 9))
def test_a_quotient_is_rounded_towards_zero_where_an_integer_division_is(a: int, b: int) -> None:
    assert evaluate(["/", a, b], {}) == (int(a / b) if b else 0)


def test_derived_sizes_may_stand_on_one_another_in_any_order() -> None:
    derived: dict[str, Formula] = {"size10": ["+", "size9", "n"], "size8": ["*", "n", 2], "size9": ["max", "size8", 5]}
    assert with_derived(derived, {"n": 4}) == {"n": 4, "size8": 8, "size9": 8, "size10": 12}


def test_the_sizes_not_asked_for_longest_are_forgotten() -> None:
    kept: Recent[int] = Recent()
    for n in range(recent._MOST):
        kept.keep({"n": n}, n)
    assert kept.get({"n": 0}) == 0
    kept.keep({"n": -1}, -1)
    assert kept.get({"n": 0}) == 0
    assert kept.get({"n": 1}) is None


def test_tensors_of_sizes_that_come_again_are_made_once() -> None:
    made: list[int] = []

    def bind(arrays: Any) -> tuple[Any, ...]:
        made.append(len(arrays))
        return tuple(arrays)

    memory = Memory([Slot(["*", "n", 4], 0, 1)], [Buffer(0, ["n"], "float32")], [-1], [])
    storage = Storage([memory], bind)
    first = storage.tensors(0, {"n": 100})
    assert storage.tensors(0, {"n": 50})[0].shape == (50,)
    assert storage.tensors(0, {"n": 100}) is first
    assert len(made) == 2
    larger = storage.tensors(0, {"n": 1000})  # in another arena
    again = storage.tensors(0, {"n": 100})
    assert again is not first and np.shares_memory(again[0], larger[0])
