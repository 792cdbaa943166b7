"""What the tile model says of a layer in float32 and in int8, and that a pass leaves alone what is no faster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from backends.layer_speed import layer_speed
from optimizer import CompiledModel, optimize
from optimizer.layer_speed import LayerWork, Speed
from optimizer.target import Target
from tests.optimizer.build import model as build
from tests.optimizer.build import node, perceptron, value

VNNI, PLAIN = "cpu:znver5", "cpu:x86-64-v3"
PRODUCT = LayerWork(128, 768, 768, read=768)
RNG = np.random.default_rng(0)
SETS = [{"x": RNG.standard_normal((6, 32)).astype(np.float32)} for _ in range(2)]


def speed(target: str) -> Speed:
    found = layer_speed(Target.parse(target))
    assert found is not None
    return found


def gain(work: LayerWork, target: str = VNNI) -> float:
    float32, int8 = speed(target)(work)
    return float32 / int8


def test_bytes_are_four_times_as_fast_where_the_processor_multiplies_four() -> None:
    assert 3 < gain(PRODUCT) < 4
    assert 0.9 < gain(PRODUCT, PLAIN) < 1


def test_one_row_is_as_fast_as_its_weights_are_read() -> None:
    assert gain(replace(PRODUCT, rows=1)) == pytest.approx(4, rel=0.1)
    assert gain(replace(PRODUCT, rows=1), PLAIN) == pytest.approx(4, rel=0.1)


def test_rounding_counts() -> None:
    few = replace(PRODUCT, columns=2)
    assert gain(replace(few, dynamic=True)) <= gain(few) < gain(PRODUCT)
    assert speed(VNNI)(few)[0] == speed(VNNI)(replace(few, dynamic=True))[0]


def test_a_convolution_with_a_faster_method_gains_less() -> None:
    conv = LayerWork(56 * 56, 576, 64, 1, 64, 1, 56, 56, three=True)
    assert gain(conv) < gain(replace(conv, three=False))
    assert gain(conv, PLAIN) < 0.5


def test_one_channel_by_itself_gains_nothing() -> None:
    assert gain(LayerWork(112 * 112, 9, 1, 96, 96.0, 1, 112, 112)) < 1


def test_what_is_stored_rounded_costs_no_pass_of_its_own() -> None:
    channels = LayerWork(112 * 112, 9, 1, 96, 96.0, 1, 112, 112, stored_rounded=True)
    assert gain(channels) == 1
    assert gain(PRODUCT) < gain(replace(PRODUCT, stored_rounded=True))
    assert gain(replace(PRODUCT, dynamic=True)) == gain(replace(PRODUCT, dynamic=True, stored_rounded=True))


def test_a_symbolic_number_of_rows_is_that_of_some() -> None:
    assert gain(replace(PRODUCT, rows=None)) == pytest.approx(gain(PRODUCT))


def test_only_the_cpu_has_a_model() -> None:
    assert layer_speed(Target.parse("onnx")) is None


def small(**options: Any) -> CompiledModel:
    return optimize(perceptron(), progress=False, cache=False, **options)


def quantized_and_left(compiled: CompiledModel) -> tuple[set[str], dict[str, str]]:
    left = {row.node: row.reason for row in compiled.report.near_misses if row.pass_name == "quantize-int8"}
    return {row.node for row in compiled.report.layers}, left


@pytest.mark.parametrize("calibration", [None, SETS])
def test_what_would_be_no_faster_is_left_alone_and_listed(calibration: Any) -> None:
    compiled = small(target=PLAIN, precision="int8", calibration=calibration)
    done, left = quantized_and_left(compiled)
    assert not done and set(left) == {"bias", "second"}
    assert all("it is predicted to be no faster: " in reason and " in float32" in reason for reason in left.values())
    assert "nothing computes in int8" in " ".join(compiled.report.notes)


def test_size_can_be_asked_for() -> None:
    done, left = quantized_and_left(small(target=PLAIN, passes="quantize-int8{dynamic=true,optimize_for=size}"))
    assert done == {"first", "second"} and not left


@pytest.mark.parametrize("reader", ["", "a skip connection", "the input", "Sigmoid", "the caller"])
def test_each_layer_is_in_int8_or_has_its_reason(reader: str) -> None:
    """Channels by themselves are no faster as bytes: they are bytes if nothing else is made of what is before them."""
    weights = {
        "k": RNG.standard_normal((32, 3, 3, 3)).astype(np.float32),
        "d": RNG.standard_normal((32, 1, 3, 3)).astype(np.float32),
        "p": RNG.standard_normal((64, 32, 1, 1)).astype(np.float32),
        "w": RNG.standard_normal((64, 10)).astype(np.float32),
    }
    nodes = [
        node("Conv", ["x", "k"], ["a"], name="stem", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b" if reader != "the input" else "v", "d"], ["c"], name="depthwise", pads=[1] * 4, group=32),
        node("Relu", ["c"], ["e"]),
        node("Conv", ["e", "p"], ["f"], name="pointwise"),
        node("Relu", ["f"], ["r"]),
        node("GlobalAveragePool", ["r"], ["g"]),
        node("Flatten", ["g"], ["h"]),
        node("MatMul", ["h", "w"], ["y"], name="head"),
    ]
    inputs, outputs = [value("x", [1, 3, 32, 32])], [value("y", [1, 10])]
    sets = [{"x": RNG.standard_normal((1, 3, 32, 32)).astype(np.float32)} for _ in range(3)]
    if reader == "the input":
        inputs.append(value("v", [1, 32, 32, 32]))
        sets = [{**each, "v": RNG.standard_normal((1, 32, 32, 32)).astype(np.float32)} for each in sets]
    if reader in ("a skip connection", "the input"):
        nodes[4:5] = [node("Add", ["e", "b"], ["m"]), node("Conv", ["m", "p"], ["f"], name="pointwise")]
    elif reader == "Sigmoid":
        nodes.append(node("Sigmoid", ["b"], ["s"]))
        outputs.append(value("s", [1, 32, 32, 32]))
    elif reader == "the caller":
        outputs.append(value("b", [1, 32, 32, 32]))
    network: onnx.ModelProto = build(nodes, inputs, outputs, weights)
    compiled = optimize(network, VNNI, precision="int8", calibration=sets, progress=False, cache=False)
    done, left = quantized_and_left(compiled)
    assert {"pointwise", "head"} <= done
    assert ("depthwise" in done) == (reader in ("", "a skip connection"))
    assert done | set(left) == {"stem", "depthwise", "pointwise", "head"} and not done & set(left)
