"""Depthwise convolutions that lose more than they gain."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.calibration import Samples
from optimizer.ir.near_miss import RewriteResult
from optimizer.reference import run_reference
from passes.quantization.grids import Kind
from passes.quantization.layers import Layer
from passes.quantization.ranges import Powers, observe_ranges
from passes.quantization.sensitive import MOST_LOST, is_depthwise, lost, outliers
from passes.quantize_int8 import QuantizeInt8
from tests.passes.int8_graphs import graph, operators

RNG = np.random.default_rng(0)
TEXT = """g (float[1,8,12,12] x) => (float[1,8,10,10] y) {
    a = Relu(x) h = Conv<group = 8>(a, w, c) y = Neg(h) }"""
SMOOTH = (RNG.standard_normal((1, 8, 1, 1)) + 0.02 * RNG.standard_normal((1, 8, 12, 12)) + 3).astype(np.float32)
NOISY = RNG.standard_normal((1, 8, 12, 12)).astype(np.float32)
EDGES = np.tile(np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32), (8, 1, 1, 1))
MEANS = np.abs(RNG.standard_normal((8, 1, 3, 3))).astype(np.float32)


def model(weight: np.ndarray, text: str = TEXT) -> ir.Model:
    return graph(text, w=weight, c=np.zeros(len(weight), np.float32))


def quantized(weight: np.ndarray, x: np.ndarray, text: str = TEXT, **options: Any) -> RewriteResult:
    given = model(weight, text)
    result = QuantizeInt8(samples=Samples.of(given.graph, [x]), **options)(given)
    assert isinstance(result, RewriteResult)
    return result


def test_differences_of_neighbours_that_are_alike_stay() -> None:
    result = quantized(EDGES, SMOOTH)
    assert not result.modified
    assert "its result would be off by" in result.near_misses[0].reason


@pytest.mark.parametrize(
    ("weight", "x", "text", "options"),
    [
        (MEANS, SMOOTH, TEXT, {}),
        (MEANS, NOISY, TEXT, {}),
        (EDGES, SMOOTH, TEXT, {"optimize_for": "size"}),
        (EDGES, SMOOTH, TEXT, {"kernels": "onnxruntime"}),
        (np.tile(EDGES, (1, 2, 1, 1)), SMOOTH, TEXT.replace("group = 8", "group = 4"), {}),
    ],
    ids=["means", "noise", "size", "onnxruntime", "two channels each"],
)
def test_layers_that_are_taken(weight: np.ndarray, x: np.ndarray, text: str, options: dict[str, Any]) -> None:
    assert quantized(weight, x, text, **options).modified


def test_what_remains_is_rounded_as_if_the_layer_were_not_there() -> None:
    """A layer in front of it and one behind it are quantized."""
    text = """g (float[1,8,12,12] x) => (float[1,8,10,10] y) {
        a = Conv(x, i, c) h = Conv<group = 8>(a, w, c) o = Conv(h, i, c) y = Neg(o) }"""
    own = np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1)
    given = graph(text, w=EDGES, c=np.zeros(8, np.float32), i=own)
    result = QuantizeInt8(samples=Samples.of(given.graph, [SMOOTH]))(given).model
    assert operators(result).count("QuantizeLinear") == 2
    by_name = {node.outputs[0].name: node for node in result.graph}
    weight = by_name["h"].inputs[1]
    assert weight is not None and weight.name == "w"


@pytest.mark.parametrize(("weight", "x"), [(EDGES, SMOOTH), (EDGES, NOISY), (MEANS, NOISY)])
def test_the_loss_is_foretold(weight: np.ndarray, x: np.ndarray) -> None:
    """Beside what rounding both operands really loses: within a factor of two, for errors are as they fall."""
    given = model(weight, TEXT)
    node = next(node for node in given.graph if node.op_type == "Conv")
    assert node.inputs[0] is not None and node.inputs[1] is not None
    layer = Layer(node, node.inputs[0], node.inputs[1], 0)
    assert is_depthwise(layer)
    powers = {"a": Powers(1), "h": Powers(1)}
    seen = observe_ranges(given, ["a"], Samples.of(given.graph, [x]), powers)["a"]
    grid = Kind(False, False).over(seen.low, seen.high)
    expected = lost(layer, grid, Kind(True, True), True, powers)
    result = quantized(weight, x, optimize_for="size", bias_correction=False).model
    (true,), (found,) = (run_reference(m, [x]) for m in (given, result))
    error = float(np.linalg.norm(found - true) / np.linalg.norm(true))
    assert expected / 2 < error < expected * 2
    assert (expected > MOST_LOST) == (weight is EDGES and x is SMOOTH)


@pytest.mark.parametrize(
    ("errors", "found"),
    [
        ([0.023, 0.01, 0.011, 0.009], [0]),
        ([0.1, 0.03, 0.04, 0.035], [0]),
        ([0.03, 0.035, 0.04, 0.031], []),
        ([0.018, 0.001, 0.002], []),
        ([0.03], [0]),
        ([], []),
    ],
)
def test_only_what_stands_out_stays(errors: list[float], found: list[int]) -> None:
    node = next(node for node in model(EDGES).graph if node.op_type == "Conv")
    assert node.inputs[0] is not None and node.inputs[1] is not None
    layers = [Layer(node, node.inputs[0], node.inputs[1], place) for place in range(len(errors))]
    assert outliers(dict(zip(layers, errors, strict=True))) == [layers[place] for place in found]
