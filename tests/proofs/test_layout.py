"""Reshape with 0 and -1, Transpose, Slice and Pad: tried on all small shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import z3

from optimizer.ir.reshape import added_axes, reshape_target
from optimizer.ir.symbolic import Dim, symbol
from passes.merge_transposes import _composed
from tests.proofs.solver import counterexample, prove
from tests.proofs.test_integers import value

SIZES = (0, 1, 2, 3)


def reshaped(target: Sequence[int], given: Sequence[int]) -> tuple[int, ...] | None:
    """The shape that ONNX's Reshape gives; `None` where it fails."""
    sizes = []
    for axis, size in enumerate(target):
        if size == 0 and axis >= len(given):
            return None
        sizes.append(given[axis] if size == 0 else size)
    total, known = math.prod(given), math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        if known == 0 or total % known:
            return None
        sizes[sizes.index(-1)] = total // known
    return tuple(sizes) if math.prod(sizes) == total else None


def shapes(length: int) -> Iterator[tuple[Dim, ...]]:
    """All shapes of so many axes made of numbers, of two symbols, and of their product."""
    a, b = symbol("a"), symbol("b")
    return itertools.product((1, 2, 3, a, b, a * b), repeat=length)


def concrete(dims: Sequence[Dim], sizes: dict[str, int]) -> tuple[int, ...]:
    found = [value(dim, sizes) for dim in dims]
    return tuple(size for size in found if size is not None)


PAIRS = [
    (given, wanted)
    for ranks in itertools.product((1, 2, 3), repeat=2)
    for given in shapes(ranks[0])
    for wanted in shapes(ranks[1])
    if math.prod(concrete(given, {"a": 5, "b": 7})) == math.prod(concrete(wanted, {"a": 5, "b": 7}))
    and math.prod(concrete(given, {"a": 11, "b": 5})) == math.prod(concrete(wanted, {"a": 11, "b": 5}))
]
"""All pairs of shapes with as many elements, whatever the symbols are."""


@pytest.mark.parametrize("may_mix", [False, True])
def test_the_constant_of_a_reshape_says_the_wanted_shape(may_mix: bool) -> None:
    said = 0
    for given, wanted in PAIRS:
        target = reshape_target(wanted, given, may_mix=may_mix)
        if target is None:
            continue
        said += 1
        for a, b in itertools.product(SIZES, repeat=2):
            sizes = {"a": a, "b": b}
            result = reshaped(target, concrete(given, sizes))
            without_elements = not math.prod(concrete(given, sizes))
            if without_elements and (may_mix or -1 in target):
                # With a -1 Reshape may fail on a tensor without elements; it never gives another shape.
                assert result in (None, concrete(wanted, sizes)) or 0 not in target, (given, wanted, target, sizes)
            else:
                assert result == concrete(wanted, sizes), (given, wanted, target, sizes)
    assert said > 300


def test_two_zeros_do_not_compose() -> None:
    """Reshape(Reshape(x, [6, 4]), [0, 2, 2]) is not Reshape(x, [0, 2, 2]): a 0 copies from its own input."""
    first = reshaped((6, 4), (2, 3, 4))
    assert first is not None
    assert reshaped((0, 2, 2), first) == (6, 2, 2)
    assert reshaped((0, 2, 2), (2, 3, 4)) is None


def test_a_last_shape_without_zeros_does_not_look_at_what_it_is_given() -> None:
    for given in itertools.product((1, 2, 3), repeat=3):
        total = math.prod(given)
        for middle in itertools.product((1, 2, 3, 4, 6, 9), repeat=2):
            if math.prod(middle) != total:
                continue
            for last in itertools.product((-1, 1, 2, 3, 6), repeat=2):
                if last.count(-1) < 2:
                    assert reshaped(last, middle) == reshaped(last, given)


def test_added_axes() -> None:
    found = 0
    for given, wanted in PAIRS:
        axes = added_axes(wanted, given)
        if axes is None:
            continue
        found += 1
        sizes = {"a": 2, "b": 3}
        assert np.expand_dims(np.empty(concrete(given, sizes)), axes).shape == concrete(wanted, sizes)
    assert found > 100


def test_a_transpose_of_a_transpose() -> None:
    for rank in range(1, 5):
        x = np.arange(math.prod(range(2, rank + 2))).reshape(range(2, rank + 2))
        for inner, outer in itertools.product(itertools.permutations(range(rank)), repeat=2):
            merged = _composed(inner, outer)
            assert merged is not None
            np.testing.assert_array_equal(x.transpose(inner).transpose(outer), x.transpose(merged))
    assert _composed((1, 0), (0, 2, 1)) is None


def test_composed_the_other_way_round_is_wrong() -> None:
    x = np.arange(24).reshape(2, 3, 4)
    inner, outer = (1, 2, 0), (0, 2, 1)
    wrong = tuple(outer[axis] for axis in inner)
    assert x.transpose(inner).transpose(outer).shape != x.transpose(wrong).shape


# --- Slice and Pad ---

size, start, end, index = z3.Ints("size start end index")
LONGEST = 2**31 - 1


def clamped(position: z3.ArithRef, length: z3.ArithRef) -> z3.ArithRef:
    counted = z3.If(position < 0, position + length, position)
    return z3.If(counted < 0, 0, z3.If(counted > length, length, counted))


def test_a_slice_from_zero_to_the_end_keeps_everything() -> None:
    possible = (size >= 0, size < LONGEST)
    prove(z3.And(clamped(start, size) == 0, clamped(end, size) == size), start == 0, end >= LONGEST, *possible)
    assert counterexample(clamped(end, size) == size, end >= LONGEST - 2, *possible) is not None
    assert counterexample(clamped(start, size) == 0, start == 1, size > 0) is not None


def test_a_slice_in_steps_of_one_that_keeps_the_size_keeps_everything() -> None:
    first, last = clamped(start, size), clamped(end, size)
    prove(first + index == index, last - first == size, index >= 0, index < size)
    assert counterexample(first + index == index, last - first == size - 1, index >= 0, index < size) is not None


def test_a_slice_backwards_that_keeps_the_size_does_not() -> None:
    step = z3.Int("step")
    given = (step == -1, start == size - 1, index >= 0, index < size)
    assert counterexample(start + step * index == index, *given) is not None


def test_a_pad_by_nothing() -> None:
    before, after = z3.Ints("before after")
    inside = z3.And(index - before >= 0, index - before < size)
    prove(z3.And(inside, index - before == index), before == 0, after == 0, index >= 0, index < size + before + after)
    # Negative pads cut off: their sum being zero is not enough.
    assert counterexample(index - before == index, before + after == 0, index >= 0, index < size) is not None


def test_squeeze_and_unsqueeze_undo_each_other_only_along_the_same_axes() -> None:
    for given in itertools.product((1, 2), repeat=3):
        x = np.arange(math.prod(given)).reshape(given)
        for axis, other in itertools.product(range(4), repeat=2):
            longer = np.expand_dims(x, axis)
            if longer.shape[other] == 1 and axis == other:
                np.testing.assert_array_equal(np.squeeze(longer, other), x)
    assert np.squeeze(np.expand_dims(np.empty((1, 2)), 2), 0).shape != (1, 2)
