"""Every alternative to a choice of the tile model gives the same numbers, and a measured one is really used."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir.passes.common import ShapeInferencePass

from backends import get_backend
from backends.cpu.choices import ChosenTiles
from backends.cpu.tiles import Tiles
from backends.relax.executable import RelaxExecutable
from backends.relax.values import ConvShape
from optimizer.target import CPUS, Choices, Target
from tests.backends.running import conv_relu, distance, oracle, parse

RNG = np.random.default_rng(5)
KINDS = ("generic", "x86-64-v3", "x86-64-v4")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def compiled(model: onnx.ModelProto, choices: Choices = ()) -> RelaxExecutable:
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    executable = get_backend("cpu").compile(graph, Target("cpu", Target.parse("cpu").cpu, choices), fallback="error")
    assert isinstance(executable, RelaxExecutable)
    return executable


def agrees(executable: RelaxExecutable, model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> None:
    for ours, theirs in zip(executable.run(list(inputs), 2), oracle(model, inputs), strict=True):
        assert distance(ours, theirs) <= 1e-5


def every_alternative(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> int:
    """Compile the model with each value of each choice; gives how many were not the analytic ones."""
    count = 0
    for decision in compiled(model).decisions:
        for value in list(decision.costs)[1:]:
            executable = compiled(model, ((decision.key, value),))
            assert {d.key: d.value for d in executable.decisions}[decision.key] == value
            agrees(executable, model, inputs)
            count += 1
    return count


@settings(max_examples=3, deadline=None, derandomize=True)
@given(m=st.integers(1, 40), k=st.integers(1, 70), n=st.integers(33, 200))
def test_a_product_is_the_same_in_panels_of_any_width(m: int, k: int, n: int) -> None:
    text = f"g (float[{m},{k}] a) => (float[{m},{n}] y) {{ t = MatMul(a, b) u = Add(t, c) y = Relu(u) }}"
    assert every_alternative(parse(text, {"b": normal(k, n), "c": normal(n)}), [normal(m, k)])


@settings(max_examples=2, deadline=None, derandomize=True)
@given(size=st.integers(5, 18), stride=st.sampled_from([1, 2]), out=st.integers(33, 100))
def test_a_convolution_is_the_same_in_panels_of_any_width(size: int, stride: int, out: int) -> None:
    text = conv_relu("float", f"1,5,{size},{size}", stride, [1, 1, 1, 1])
    weights = {"w": normal(out, 5, 3, 3), "b": normal(out)}
    assert every_alternative(parse(text, weights), [normal(1, 5, size, size)])


@settings(max_examples=2, deadline=None, derandomize=True)
@given(size=st.integers(14, 24), out=st.integers(33, 80))
def test_a_convolution_is_the_same_by_either_method(size: int, out: int) -> None:
    text = conv_relu("float", f"1,32,{size},{size}", 1, [1, 1, 1, 1])
    model = parse(text, {"w": normal(out, 32, 3, 3) / 16, "b": normal(out)})
    assert any(decision.key.startswith("winograd") for decision in compiled(model).decisions)
    assert every_alternative(model, [normal(1, 32, size, size)])


def test_a_measured_width_is_that_of_the_packed_weights() -> None:
    model = parse("g (float[48,64] a) => (float[48,96] y) { y = MatMul(a, b) }", {"b": normal(64, 96)})
    (decision,) = compiled(model).decisions
    assert (decision.key, decision.nodes) == ("panel 48x64x96", (next(iter(decision.nodes)),))
    for value in decision.costs:
        (weight,) = compiled(model, ((decision.key, value),))._plan.weights
        assert weight.shape[-1] == value
        assert weight.options["width"] == value


def test_another_value_than_those_on_offer_is_not_taken() -> None:
    tiles = Tiles(CPUS["x86-64-v4"])
    analytic = tiles.panel_width(48, 96, 64)
    for value in (0, -16, 7, 10_000):
        assert ChosenTiles(tiles.cpu, {"panel 48x64x96": value}).panel_width(48, 96, 64) == analytic
    analytic_method = tiles.winograd_width(ConvShape(1, 56, 56, 64, 64))
    chosen = ChosenTiles(tiles.cpu, {"winograd 1x56x56x64x64": 7})
    assert chosen.winograd_width(ConvShape(1, 56, 56, 64, 64)) == analytic_method


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4000), columns=st.integers(1, 4000), depth=st.integers(1, 4000))
def test_the_analytic_width_is_the_first_of_a_few(kind: str, rows: int, columns: int, depth: int) -> None:
    tiles = ChosenTiles(CPUS[kind])
    width = tiles.panel_width(rows, columns, depth)
    (decision,) = tiles.decisions.values()
    assert width == decision.value == next(iter(decision.costs)) == Tiles(CPUS[kind]).panel_width(rows, columns, depth)
    assert len(decision.costs) <= 4
    assert all(0 < cost <= 1.5 for cost in decision.costs.values())
    assert all(value % tiles.lanes() == 0 and tiles.fits(1, value // tiles.lanes()) for value in decision.costs)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(side=st.integers(1, 80), depth=st.integers(1, 12), columns=st.integers(1, 300))
def test_the_analytic_method_is_the_first_of_a_few(kind: str, side: int, depth: int, columns: int) -> None:
    tiles = ChosenTiles(CPUS[kind])
    width = tiles.winograd_width(ConvShape(1, side, side, depth * 16, columns))
    (decision,) = tiles.decisions.values()  # the panels of a direct sum that is not made decide nothing
    assert (width or 0) == decision.value == next(iter(decision.costs))
    assert width == Tiles(CPUS[kind]).winograd_width(ConvShape(1, side, side, depth * 16, columns))
    assert all(0 < cost <= 2.0 for cost in decision.costs.values())


def test_symbolic_sizes_are_left_to_the_tile_model() -> None:
    tiles = ChosenTiles(CPUS["x86-64-v4"])
    tiles.panel_width(None, 768, 768)
    tiles.winograd_width(ConvShape(None, 56, 56, 64, 64))
    tiles.winograd_width(ConvShape(1, 56, None, 64, 64))
    tiles.winograd_width(ConvShape(1, 56, 56, 60, 64))  # channels that do not fill vectors
    assert tiles.decisions == {}


def test_nodes_of_the_same_sizes_share_a_choice() -> None:
    text = "g (float[48,64] a) => (float[48,64] y) { t = MatMul(a, b) u = Relu(t) y = MatMul(u, c) }"
    executable = compiled(parse(text, {"b": normal(64, 64), "c": normal(64, 64)}))
    (decision,) = executable.decisions
    assert len(decision.nodes) == 2
    kernels = [nodes for nodes, seconds in executable.kernel_seconds([normal(48, 64)], 1) if seconds > 0]
    assert set(decision.nodes) <= {node for nodes in kernels for node in nodes}


def test_pairs_of_bfloat16_are_the_same_in_panels_of_any_width() -> None:
    weight, data = normal(31, 100).astype(ml_dtypes.bfloat16), normal(20, 31).astype(ml_dtypes.bfloat16)
    model = parse("g (bfloat16[20,31] a) => (bfloat16[20,100] y) { y = MatMul(a, b) }", {"b": weight})
    expected = data.astype(np.float32) @ weight.astype(np.float32)
    (decision,) = compiled(model).decisions
    assert len(decision.costs) > 1
    for value in decision.costs:
        (result,) = compiled(model, ((decision.key, value),)).run([data], 2)
        assert distance(result.astype(np.float32), expected) <= 2**-8
