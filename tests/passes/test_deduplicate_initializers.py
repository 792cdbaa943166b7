from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.testing import check_pass, models
from passes.deduplicate_initializers import DeduplicateInitializers
from tests.passes.transform import assert_becomes, assert_stays, read


def test_equal_ones_merge() -> None:
    assert_becomes(
        DeduplicateInitializers(),
        "g (float[2] x) => (float[2] y) <float[2] a = {1,2}, float[2] b = {1,2}> { z = Add(x, a) y = Mul(z, b) }",
        "g (float[2] x) => (float[2] y) <float[2] a = {1,2}> { z = Add(x, a) y = Mul(z, a) }",
    )


def test_one_around_serves_a_branch() -> None:
    assert_becomes(
        DeduplicateInitializers(),
        """g (float[2] x, bool c) => (float[2] y) <float[2] a = {1,2}> { z = Add(x, a) y = If (c) <
            then_branch = t () => (o) <float[2] b = {1,2}> { o = Mul(z, b) },
            else_branch = e () => (p) { p = Neg(z) }> }""",
        """g (float[2] x, bool c) => (float[2] y) <float[2] a = {1,2}> { z = Add(x, a) y = If (c) <
            then_branch = t () => (o) { o = Mul(z, a) },
            else_branch = e () => (p) { p = Neg(z) }> }""",
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("float[2] a = {1,2}", "float[2] b = {1,3}"),
        ("float[2] a = {1,2}", "float[1,2] b = {1,2}"),
        ("float[2] a = {0.0,1.0}", "float[2] b = {-0.0,1.0}"),
    ],
)
def test_different_ones_stay(a: str, b: str) -> None:
    assert_stays(
        DeduplicateInitializers(), f"g (float[1,2] x) => (float[1,2] y) <{a}, {b}> {{ z = Add(x, a) y = Mul(z, b) }}"
    )


def test_the_type_counts() -> None:
    assert_stays(
        DeduplicateInitializers(),
        """g (int64[2] x) => (int64[2] y) <int64[1] a = {0}, int32[1] b = {0}> {
            c = Gather(x, b) d = Add(x, a) y = Add(c, d) }""",
    )


def test_two_branches_do_not_share() -> None:
    assert_stays(
        DeduplicateInitializers(),
        """g (float[2] x, bool c) => (float[2] y) { y = If (c) <
            then_branch = t () => (o) <float[2] a = {1,2}> { o = Mul(x, a) },
            else_branch = e () => (p) <float[2] b = {1,2}> { p = Add(x, b) }> }""",
    )


def test_the_interface_stays() -> None:
    pair = "<float[2] a = {1,2}, float[2] b = {1,2}>"
    for text in (
        f"g (float[2] x, float[2] a) => (float[2] y) {pair} {{ z = Add(x, a) y = Mul(z, b) }}",
        f"g (float[2] x) => (float[2] y, float[2] b) {pair} {{ y = Add(x, a) }}",
    ):
        assert not DeduplicateInitializers()(read(text)).modified


def test_large_weights_that_differ_in_the_middle() -> None:
    first = np.zeros(10_000, np.float32)
    second = first.copy()
    second[5_000] = 1
    model = read(
        "g (float[10000] x) => (float[10000] y) <float a = {0}, float b = {0}> { z = Add(x, a) y = Mul(z, b) }"
    )
    for name, content in (("a", first), ("b", second)):
        model.graph.initializers[name].const_value = ir.tensor(content)
    assert not DeduplicateInitializers()(model).modified
    model.graph.initializers["b"].const_value = ir.tensor(first.copy())
    assert DeduplicateInitializers()(model).modified


def test_large_weights_that_differ_at_the_front_are_not_read_in_full() -> None:
    model = read("g (float[4000] x) => (float[4000] y) <float a = {0}, float b = {0}> { z = Add(x, a) y = Mul(z, b) }")
    for name, first in (("a", 1.0), ("b", 2.0)):
        model.graph.initializers[name].const_value = ir.tensor(np.full(4000, first, np.float32))
    assert not DeduplicateInitializers()(model).modified


@settings(max_examples=25, derandomize=True, deadline=None)
@given(models())
def test_property(model: ir.Model) -> None:
    check_pass(DeduplicateInitializers(), model)
