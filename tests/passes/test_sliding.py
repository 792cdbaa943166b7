"""Strips of an image: the rows that two of them need are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.testing import check_pass
from passes.tiling.cut import WHOLE, Cut, Window
from passes.tiling.facts import Facts
from passes.tiling.sliding import PiecePlan, Sliding, merged
from tests.passes.test_tile_memory import CutAll, convolutions, graph

SAME = "pads = [1,1,1,1]"
LEVELS = f"""a = Conv<{SAME}>(x, w) b = Relu(a) c = Conv<{SAME}>(b, w) d = Relu(c)
    e = MaxPool<kernel_shape = [2,2], strides = [2,2]>(d) f = Conv<{SAME}>(e, w) g = Relu(f)
    u = ConvTranspose<strides = [2,2]>(g, t) j = Concat<axis = 1>(d, u) k = Conv<{SAME}>(j, v) y = Relu(k)"""
WEIGHTS = {"w": (16, 16, 3, 3), "t": (16, 16, 2, 2), "v": (16, 32, 3, 3)}


def levels() -> ir.Model:
    """Two levels of a U-Net, with its skip connection."""
    return graph(LEVELS, "float[1,16,64,16] x", "float[1,16,64,16] y", **WEIGHTS)


def rows(model: ir.Model) -> int:
    """The rows that all convolutions together compute."""
    shapes = [node.outputs[0].shape for node in model.graph if node.op_type == "Conv"]
    return sum(shape.numpy()[2] for shape in shapes if shape is not None)


ROWS = 64 * 3 + 32
"""Of the convolutions above."""


@pytest.mark.parametrize("count", [2, 4, 8])
def test_no_row_of_a_convolution_is_computed_twice(count: int) -> None:
    cut = check_pass(CutAll(2, count), levels())
    assert rows(cut) == ROWS
    assert sum(node.op_type == "Conv" for node in cut.graph) >= 4 * count - 4


def test_halos_are_computed_again_where_rows_cannot_be_joined_without_copying_all() -> None:
    """ONNX Runtime copies all that it concatenates, and the cheap convolutions here take less."""
    assert rows(check_pass(CutAll(2, 4, fused=False), levels())) > ROWS


def plan_of(sliding: Sliding, value: ir.Value, *wanted: Window) -> tuple[list[Window], PiecePlan]:
    plan = PiecePlan()
    windows = sliding.windows(value, wanted, plan)
    for window in windows:
        sliding.computed(value, Cut((WHOLE,), window), plan)
    return windows, plan


def test_what_is_there_of_a_value() -> None:
    model = levels()
    facts = Facts(model, fused=True)
    value = next(v for node in model.graph for v in node.outputs if v.name == "d")
    sliding = Sliding(facts)
    assert plan_of(sliding, value, Window(2, 0, 17))[0] == [Window(2, 0, 17)]
    windows, plan = plan_of(sliding, value, Window(2, 15, 33))
    assert windows == [Window(2, 17, 33)]
    assert plan.tails == {value: Window(2, 15, 17)}
    windows, plan = plan_of(sliding, value, Window(2, 20, 30))
    assert not windows
    assert plan.kept == {value}
    assert plan_of(sliding, value, Window(2, 40, 50))[0] == [Window(2, 40, 50)]  # not all of what lies between is there
    assert plan_of(sliding, value, Window(2, 30, 60))[0] == [Window(2, 30, 60)]  # rows that nobody has any more
    assert plan_of(sliding, value, WHOLE)[0] == [WHOLE]


def test_two_parts_that_are_apart_do_not_slide() -> None:
    model = levels()
    value = next(v for node in model.graph for v in node.outputs if v.name == "d")
    parts = [Window(2, 0, 8), Window(2, 20, 28)]
    windows, plan = plan_of(Sliding(Facts(model, fused=True)), value, *parts)
    assert windows == parts
    assert not plan.sliding


def test_windows_that_overlap_are_one() -> None:
    assert merged([Window(2, 4, 8), Window(2, 0, 5), Window(2, 9, 12)]) == [Window(2, 0, 8), Window(2, 9, 12)]
    assert merged([Window(2, 4, 8), WHOLE]) == [WHOLE]
    assert merged([]) == []


@st.composite
def decoders(draw: Callable[[st.SearchStrategy[Any]], Any]) -> ir.Model:
    """A pool, what an image becomes below it, a way up of one kind or another, and the skip connection."""
    height, width = 2 * draw(st.integers(5, 15)), 2 * draw(st.integers(3, 5))
    up = draw(
        st.sampled_from(
            [
                "ConvTranspose<strides = [2,2]>(g, t)",
                'Resize(g, "", two)',
                "ConvTranspose<strides = [2,2], pads = [1,1,1,1]>(g, o)",
            ]
        )
    )
    join = draw(st.sampled_from(["j = Concat<axis = 1>(d, u) k = Conv<pads = [1,1,1,1]>(j, v)", "k = Add(d, u)"]))
    dilation = draw(st.integers(1, 3))
    below = draw(st.sampled_from(["g = Relu(e)", f"f = Conv<{SAME}>(e, w) g = Tanh(f)"]))
    nodes = f"""two = Constant<value_floats = [1.0, 1.0, 2.0, 2.0]>()
        a = Conv<pads = [{dilation},{dilation},{dilation},{dilation}], dilations = [{dilation},{dilation}]>(x, w)
        d = Relu(a) e = MaxPool<kernel_shape = [2,2], strides = [2,2]>(d) {below} u = {up} {join} y = Abs(k)"""
    used = {"w": (2, 2, 3, 3), "t": (2, 2, 2, 2), "o": (2, 2, 4, 4), "v": (2, 4, 3, 3)}
    weights = {name: shape for name, shape in used.items() if f", {name})" in nodes}
    return graph(nodes, f"float[1,2,{height},{width}] x", f"float[1,2,{height},{width}] y", **weights)


@settings(max_examples=40, deadline=None)
@given(st.one_of(decoders(), convolutions()), st.integers(2, 7))
def test_property_rows_are_kept(model: ir.Model, count: int) -> None:
    """Also where that does not pay."""
    with mock.patch.object(Sliding, "_pays", lambda *_: True):
        check_pass(CutAll(2, count), model)
