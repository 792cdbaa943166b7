"""Chains of views: axes in atoms, and the fewest nodes between two arrangements of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.ir.shapes import Shapes
from optimizer.ir.symbolic import symbol
from optimizer.ir.views import Atom, Axes, chain_back, dims_of, nearest, regrouped, stages_of, steps_between

B, S = Atom(symbol("B")), Atom(symbol("S"))
H, D = Atom(4), Atom(8)


@pytest.mark.parametrize(
    ("given_axes", "wanted", "steps"),
    [
        (((B,), (S,), (H, D)), ((B,), (S,), (H, D)), []),
        (((B,), (S,), (H, D)), ((B,), (S,), (H,), (D,)), [("Reshape", (0, 0, 4, 8))]),
        (((B,), (S,), (H,), (D,)), ((B,), (S,), (H, D)), [("Reshape", (0, 0, 32))]),
        (((B,), (H,), (S,), (D,)), ((B,), (S,), (H,), (D,)), [("Transpose", (0, 2, 1, 3))]),
        (((S,), (B,), (H, D)), ((B,), (S,), (H, D)), [("Transpose", (1, 0, 2))]),
        (
            ((S,), (B,), (H, D)),
            ((B,), (H,), (S,), (D,)),
            [("Reshape", (0, 0, 4, 8)), ("Transpose", (1, 2, 0, 3))],
        ),
        (((), (S,), (H, D)), ((), (H,), (S,), (D,)), [("Reshape", (1, 0, 4, 8)), ("Transpose", (0, 2, 1, 3))]),
        (((B,), (S,)), ((B,), (), (S,)), [("Unsqueeze", (1,))]),
        (((B,), (), (S,), ()), ((B,), (S,)), [("Squeeze", (1, 3))]),
        (((B, S), (D,)), ((B,), (S,), (D,)), None),
        (((B,), (S,)), ((B,), (D,)), None),
    ],
)
def test_steps(given_axes: Axes, wanted: Axes, steps: list[tuple[str, tuple[int, ...]]] | None) -> None:
    found = steps_between(given_axes, wanted)
    assert (None if found is None else [(step.op_type, step.numbers) for step in found]) == steps


def test_a_reshape_splits_and_joins() -> None:
    width = Atom(32)
    axes = regrouped(((B,), (S,), (width,)), (symbol("B"), symbol("S"), 4, 8))
    assert axes is not None
    assert width.parts is not None
    assert [atom.size for atom in width.leaves()] == [4, 8]
    assert dims_of(regrouped(axes, (symbol("B") * symbol("S"), 32)) or ()) == (symbol("B") * symbol("S"), 32)


def test_a_reshape_across_the_atoms_cannot_be_followed() -> None:
    assert regrouped(((S,), (Atom(6),)), (symbol("T"), symbol("U"))) is None
    assert regrouped(((S,), (Atom(6),)), (symbol("T"), 4)) is None
    assert regrouped(((S,), (Atom(6),)), (symbol("T"), symbol("S"), 6)) is None
    assert regrouped(((Atom(4),), (Atom(6),)), (3, 8)) is None


def test_one_axis_of_unknown_size_is_what_the_others_leave() -> None:
    """As exporters write `view(-1, positions, size)`, where the first size comes out as a rounded quotient."""
    rows, size = Atom(symbol("S") + symbol("P")), Atom(8)
    quotient = symbol("floor((32*B*P + 32*B*S)/(8*P + 8*S))")
    assert regrouped(((B,), (H,), (rows,), (size,)), (quotient, rows.size, 8)) == ((B, H), (rows,), (size,))
    axes = regrouped(((B, H), (rows,), (size,)), (symbol("B"), 4, quotient, 4, 2))
    assert axes == ((B,), (H,), (rows,), *((part,) for part in size.leaves()))


def read(body: str) -> ir.Model:
    return ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 23]> g (float[B,S,32] x) => (float[B,4,S,8] y)
        <int64[4] four = {{0,0,4,8}}> {{ {body} }}"""
    )


def test_nodes_that_something_else_uses_are_not_saved() -> None:
    model = read("a = Reshape(x, four) y = Transpose<perm = [0,2,1,3]>(a) z = Neg(a)")
    stages = stages_of(Shapes(model), chain_back(model.graph.outputs[0]))
    batch, heads, rows, size = stages[0].axes
    assert nearest(stages, (batch, rows, (*heads, *size))) is not None
    assert [stage.value.name for stage in stages] == ["y", "a", "x"]


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[str, tuple[int, ...]]]:
    """Reshapes and transposes of `[2, 3, 4]`."""
    array = np.zeros((2, 3, 4))
    chain: list[tuple[str, tuple[int, ...]]] = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            order = tuple(draw(st.permutations(range(array.ndim))))
            chain.append(("Transpose", order))
            array = array.transpose(order)
        else:
            shapes = [(24,), (2, 12), (6, 4), (2, 3, 4), (4, 3, 2), (2, 3, 2, 2), (1, 8, 3), (3, 1, 8)]
            shape = draw(st.sampled_from(shapes))
            chain.append(("Reshape", shape))
            array = array.reshape(shape)
    return chain


def applied(array: np.ndarray, steps: list[tuple[str, tuple[int, ...]]]) -> np.ndarray:
    for op_type, numbers in steps:
        match op_type:
            case "Transpose":
                array = array.transpose(numbers)
            case "Reshape":
                array = array.reshape([array.shape[i] if n == 0 else n for i, n in enumerate(numbers)])
            case "Squeeze":
                array = array.squeeze(numbers)
            case _:
                array = np.expand_dims(array, numbers)
    return array


@settings(max_examples=200, derandomize=True, deadline=None)
@given(chains())
def test_what_is_made_from_any_stage_is_the_same(chain: list[tuple[str, tuple[int, ...]]]) -> None:
    x = ir.val("x", ir.DataType.FLOAT, [2, 3, 4])
    nodes, initializers, value = [], [], x
    for index, (op_type, numbers) in enumerate(chain):
        if op_type == "Transpose":
            nodes.append(ir.node("Transpose", [value], {"perm": list(numbers)}))
        else:
            shape = ir.Value(name=f"s{index}", const_value=ir.tensor(np.array(numbers, np.int64)))
            initializers.append(shape)
            nodes.append(ir.node("Reshape", [value, shape]))
        value = nodes[-1].outputs[0]
        value.name = f"v{index}"
    graph = ir.Graph([x], [value], nodes=nodes, initializers=initializers, opset_imports={"": 23}, name="g")
    stages = stages_of(Shapes(ir.Model(graph, ir_version=10)), chain_back(value))
    array = np.arange(24).reshape(2, 3, 4)
    whole = applied(array, chain)
    for stage in stages:
        steps = steps_between(stage.axes, stages[0].axes)
        assert steps is not None
        assert len(steps) <= 3
        length = len(chain) - next(i for i, other in enumerate(stages) if other is stage)
        given_there = applied(array, chain[:length])
        result = applied(given_there, [(step.op_type, step.numbers) for step in steps])
        np.testing.assert_array_equal(result, whole)
