"""Weights that are turned before they are multiplied, in a graph that is cut: each segment packs them for itself."""

from __future__ import annotations

import numpy as np
import pytest

from backends.relax.plan import ONNXRUNTIME, RELAX, Plan
from optimizer.executable import Executable
from tests.backends.emitted import normal
from tests.backends.running import compiled, oracle, parse

KEEP = {"keep": np.array([True, False, True, True])}
W = {"w": normal(3, 3)}
CUT = "g (float[4,3] x) => (float[m,3] y) {{ {first} k = Compress<axis=0>(h, keep) {second} }}"


def cut(first: str, second: str, **weights: np.ndarray) -> tuple[Executable, Plan]:
    """Compiled in two segments, with the results of ONNX Runtime."""
    model = parse(CUT.format(first=first, second=second), {**KEEP, **(weights or W)})
    executable = compiled(model, fallback="onnxruntime")
    x = normal(4, 3)
    np.testing.assert_allclose(executable.run([x], 1)[0], oracle(model, [x])[0], rtol=1e-5, atol=1e-5)
    return executable, Plan.from_json(executable.manifest())


def handed_on(plan: Plan) -> set[str]:
    """What steps leave for later ones."""
    return {value.name for step in plan.steps for value in step.outputs} - {"y"}


def test_a_weight_turned_in_front_of_a_cut_is_packed_behind_it() -> None:
    _, plan = cut("t = Transpose(w) h = MatMul(x, t)", "y = MatMul(k, t)")
    assert [step.engine for step in plan.steps] == [RELAX, ONNXRUNTIME, RELAX]
    assert handed_on(plan) == {"h", "k"}
    assert [len(step.weights) for step in plan.steps] == [1, 0, 1]
    assert {spec.transform for spec in plan.weights} == {"panels"}


def test_what_turns_a_weight_needs_no_segment_of_its_own() -> None:
    _, plan = cut(
        "h = Identity(x)", "t = Transpose(w) u = Reshape(t, same) y = MatMul(k, u)", **W, same=np.array([3, 3])
    )
    assert handed_on(plan) <= {"h", "k"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("t = Transpose(x) a = MatMul(w, t) h = Transpose(a)", "s = MatMul(k, t) y = MatMul(s, x)"),
        ("h = Relu(x) t = Relu(w)", "y = MatMul(k, t)"),
    ],
    ids=["not of weights", "another operator"],
)
def test_what_is_computed_is_handed_on(first: str, second: str) -> None:
    _, plan = cut(first, second)
    assert "t" in handed_on(plan)


def test_what_the_fallback_reads_is_handed_on() -> None:
    _, plan = cut(
        "t = Transpose(w) a = Transpose(x) b = Transpose(a) c = MatMul(b, t) h = Concat<axis=0>(c, row) "
        "v = Compress<axis=0>(t, three)",
        "y = MatMul(k, v)",
        **W,
        row=np.zeros((0, 3), np.float32),
        three=np.array([True, True, True]),
    )
    assert "t" in handed_on(plan)


def test_a_graph_output_is_made_once() -> None:
    model = parse(
        "g (float[4,3] x) => (float[m,3] y, float[3,3] t) "
        "{ t = Transpose(w) h = MatMul(x, t) k = Compress<axis=0>(h, keep) y = MatMul(k, t) }",
        {**KEEP, **W},
    )
    executable = compiled(model, fallback="onnxruntime")
    x = normal(4, 3)
    for mine, right in zip(executable.run([x], 1), oracle(model, [x]), strict=True):
        np.testing.assert_allclose(mine, right, rtol=1e-5, atol=1e-5)
    plan = Plan.from_json(executable.manifest())
    assert sum(value.name == "t" for step in plan.steps for value in step.outputs) == 1
