from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from optimizer.ir.query import array
from optimizer.testing import check_pass, models
from passes.hoist_bias import HoistBias
from tests.passes.bodies import assert_becomes_everywhere
from tests.passes.transform import assert_becomes, assert_stays, read

NORM = "h = LayerNormalization(x, g, c)"
LAYER = f"{NORM} m = MatMul(h, w) p = Add(m, d) r = Relu(p) f = MatMul(r, w)"
WEIGHTS = """float[2] g = {2,3}, float[2] c = {1,5}, float[2] d = {7,8}, float[2] b = {1,-2},
    float[2,2] w = {1,2,3,4}, float[2,2] v = {4,3,2,1}"""
MOVED = "float[2] c = {2,3}, float[2] d = {12,14}"


def graph(nodes: str, inputs: str = "float[N,3,2] x", outputs: str = "float[N,3,2] y") -> str:
    return f"g ({inputs}) => ({outputs}) <{WEIGHTS}> {{ {nodes} }}"


def moved(text: str) -> str:
    """`c + b`, and `d - b @ w`."""
    return text.replace("float[2] c = {1,5}, float[2] d = {7,8}", MOVED)


@pytest.mark.parametrize(
    "total",
    [
        "s = Add(h, f) y = Add(s, b)",
        "s = Add(f, b) y = Add(s, h)",
        "s = Add(b, f) y = Add(h, s)",
        "s = Add(h, b) y = Add(f, s)",
    ],
)
def test_in_every_order(total: str) -> None:
    model = check_pass(HoistBias(), read(graph(f"{LAYER} {total}")))
    assert [node.op_type for node in model.graph].count("Add") == 2
    last = model.graph.outputs[0].producer()
    assert last is not None
    assert {value.name for value in last.inputs if value is not None} == {"h", "f"}


def test_biases_are_shifted() -> None:
    before = graph(f"{LAYER} s = Add(h, f) y = Add(s, b)")
    assert_becomes(HoistBias(), before, moved(graph(f"{LAYER} y = Add(h, f)")))
    left = ("LayerNormalization", "MatMul", "Add", "Relu", "MatMul", "Add")
    assert_becomes_everywhere(HoistBias(), before, *left)


def test_nothing_else_has_to_read_the_normalization() -> None:
    nodes = f"{NORM} s = Add(h, z) y = Add(s, b)"
    assert_becomes(
        HoistBias(), graph(nodes, "float[N,3,2] x, float[N,3,2] z"),
        moved(graph(f"{NORM} y = Add(h, z)", "float[N,3,2] x, float[N,3,2] z")),
    )  # fmt: skip


def test_matrices() -> None:
    """The place of the bias in a Gemm is free for the connection."""
    nodes = f"{NORM} p = Gemm<transB = 1, alpha = 2.0>(h, v, d) f = Gemm(p, w, b) y = Add(h, f)"
    model = check_pass(HoistBias(), read(graph(nodes, "float[N,2] x", "float[N,2] y")))
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["LayerNormalization", "Gemm", "Gemm"]
    first, second = (node for node in model.graph if node.op_type == "Gemm")
    shifted = array(first.inputs[2])
    assert shifted is not None
    np.testing.assert_array_equal(shifted, np.array([7, 8]) - 2 * (np.array([[4, 3], [2, 1]]) @ [1, -2]))
    assert second.inputs[2] is not None
    assert second.inputs[2].name == "h"


def test_the_axes_of_the_normalization_do_not_matter() -> None:
    nodes = "h = LayerNormalization<axis = 1>(x, g, c) s = Add(h, x) y = Add(s, b)"
    assert_becomes(
        HoistBias(), graph(nodes), moved(graph(nodes.replace("s = Add(h, x) y = Add(s, b)", "y = Add(h, x)")))
    )


HALF = "float16[2] g = {2,3}, float16[2] c = {1,5}, float16[2] b = {1,-2}"


@pytest.mark.parametrize(
    "text",
    [
        graph(f"{LAYER} s = Add(h, f) y = Add(s, b) z = Neg(h)", outputs="float[N,3,2] y, float[N,3,2] z"),
        graph(f"{LAYER} s = Add(h, f) y = Add(s, b)", outputs="float[N,3,2] y, float[N,3,2] h"),
        graph(f"{LAYER} s = Add(h, f) y = Add(s, b)", outputs="float[N,3,2] y, float[N,3,2] s"),
        graph(f"{LAYER} s = Add(h, f) y = Add(s, b)", outputs="float[N,3,2] y, float[N,3,2] m"),
        graph(f"{LAYER} s = Add(h, f) y = Add(s, x)"),  # no bias
        graph(f"{NORM} m = MatMul(h, w) r = Relu(m) s = Add(h, r) y = Add(s, b)"),  # a reader without a bias
        graph(f"{NORM} m = MatMul(h, h2) p = Add(m, d) s = Add(h, p) y = Add(s, b)", "float[N,3,2] x, float[2,2] h2"),
        graph(f"{NORM} m = MatMul(h, w) p = Add(m, e) s = Add(h, p) y = Add(s, b)", "float[N,3,2] x, float[2] e"),
        graph("h = LayerNormalization(x, g) s = Add(h, x) y = Add(s, b)"),  # no bias to take it
        graph("h = LayerNormalization<axis = 1>(x, k, k) s = Add(h, x) y = Add(s, b)").replace(
            "float[2] g", "float[3,2] k = {1,2,3,4,5,6}, float[2] g"
        ),
        graph("h = LayerNormalization(x, g, e) s = Add(h, x) y = Add(s, b)", "float[N,3,2] x, float[2] e"),
        graph(f"{LAYER} s = Add(h, f) y = Add(s, b)").replace("b = {1,-2}", "b = {3,3}"),  # larger than the scale
        graph(f"{NORM} s = Add(h, z) y = Add(s, b)", "float[N,3,2] x, float[3,2] z"),  # not as large as the sum
        graph(f"{LAYER} s = Add(h, f) y = Add(s, b)").replace("float[2] c = {1,5}", "float[2] c = {3.4e38,5}")
        .replace("g = {2,3}", "g = {3e38,3}").replace("b = {1,-2}", "b = {1e38,-2}"),  # would overflow
        f"g (float16[N,3,2] x) => (float16[N,3,2] y) <{HALF}> {{ {NORM} s = Add(h, x) y = Add(s, b) }}",
    ],
)  # fmt: skip
def test_stays(text: str) -> None:
    assert_stays(HoistBias(), text)


@pytest.mark.parametrize("attributes", ["<transA = 1>", "<beta = 2.0>"])
def test_a_gemm_that_does_more_stays(attributes: str) -> None:
    nodes = f"{NORM} p = Gemm{attributes}(h, w, d) f = MatMul(p, w) s = Add(h, f) y = Add(s, b)"
    assert_stays(HoistBias(), graph(nodes, "float[2,2] x", "float[2,2] y"))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(models(families=("layer", "layer", "matmul", "binary", "norm"), max_steps=8))
def test_property(model: ir.Model) -> None:
    check_pass(HoistBias(), model)
