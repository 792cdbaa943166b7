"""Code for every set of instructions computes the same: one graph of all kinds of kernels, in each type, for each.

The graph has a node, or a few, for each kind of kernel that the models of the suite need, with sizes that fill neither
vectors nor tiles; in the long test, with the sizes of the models. All of them are compiled together, for speed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest

from tests.backends.bfloat16 import TARGETS, usable
from tests.backends.running import compiled, distance, oracle, parse

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

BOUNDS = {"float": 1e-5, "bfloat16": 2.0**-7}
"""Relative distance in the norm: of sums of some thousand terms in float32; of two roundings to 8 bits."""


@dataclass(frozen=True)
class Case:
    """A kind of kernel.

    Attributes:
        body: what gives `y` from the input `x`, the weights `w`, `v` and `b`, and bytes `q`; every other name
            begins with `t`.
        small, large: the shapes of input and weights.
        types: of elements.
    """

    body: str
    small: dict[str, Shape]
    large: dict[str, Shape]
    types: tuple[str, ...] = ("float", "bfloat16")


def one(body: str, small: Shape, large: Shape, **more: Any) -> Case:
    """A kind without weights."""
    return Case(body, {"x": small}, {"x": large}, **more)


def weighted(body: str, small: tuple[Shape, Shape], large: tuple[Shape, Shape], **more: Any) -> Case:
    """A kind with weights."""
    return Case(body, dict(zip("xw", small, strict=True)), dict(zip("xw", large, strict=True)), **more)


def recurrent(op: str, gates: int) -> Case:
    def shapes(steps: int, width: int, hidden: int) -> dict[str, Shape]:
        rows = gates * hidden
        return {"x": (steps, 2, width), "w": (1, rows, width), "v": (1, rows, hidden), "b": (1, 2 * rows)}

    body = "y = {op}<hidden_size={size}>(x, w, v, b)"
    small, large = shapes(3, 9, 11), shapes(20, 96, 64)
    return Case(body.replace("{op}", op), small, large, types=("float",))


BYTES = """tq = QuantizeLinear(x, tscale, tzero) ta = DequantizeLinear(tq, tscale, tzero)
    tb = DequantizeLinear(q, tscale)"""

CASES = {
    "product": weighted("y = MatMul(x, w)", ((5, 37), (37, 50)), ((128, 768), (768, 3072))),
    "one row": weighted("t = MatMul(x, w) y = Relu(t)", ((1, 130), (130, 33)), ((1, 1280), (1280, 1000))),
    "batches": weighted(
        "t = Tanh(w) y = MatMul(x, t)", ((2, 3, 9, 20), (2, 3, 20, 11)), ((12, 128, 64), (12, 64, 128))
    ),
    "1x1": weighted("y = Conv(x, w)", ((1, 20, 7, 9), (35, 20, 1, 1)), ((1, 64, 56, 56), (256, 64, 1, 1))),
    "3x3, stride 2": weighted(
        "y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)",
        ((1, 19, 11, 13), (33, 19, 3, 3)),
        ((1, 128, 56, 56), (128, 128, 3, 3)),
    ),
    "Winograd": weighted(
        "t = Conv<pads=[1,1,1,1]>(x, w) y = Relu(t)",
        ((1, 32, 14, 15), (32, 32, 3, 3)),
        ((1, 64, 56, 56), (64, 64, 3, 3)),
    ),
    "7x7": weighted(
        "y = Conv<strides=[2,2], pads=[3,3,3,3]>(x, w)",
        ((1, 3, 31, 29), (17, 3, 7, 7)),
        ((1, 3, 224, 224), (64, 3, 7, 7)),
    ),
    "depthwise": weighted(
        "t = Conv<group={size}, pads=[1,1,1,1]>(x, w) y = Relu(t)",
        ((1, 33, 9, 10), (33, 1, 3, 3)),
        ((1, 384, 14, 14), (384, 1, 3, 3)),
    ),
    "groups": weighted(
        "y = Conv<group=3, pads=[1,1,1,1]>(x, w)", ((1, 12, 8, 9), (24, 4, 3, 3)), ((1, 96, 28, 28), (96, 32, 3, 3))
    ),
    "transposed convolution": weighted(
        "y = ConvTranspose<strides=[2,2]>(x, w)", ((1, 6, 5, 7), (6, 9, 2, 2)), ((1, 96, 40, 40), (96, 24, 2, 2))
    ),
    "attention": one("t = Sigmoid(x) y = Attention(x, t, t)", (1, 3, 19, 16), (1, 12, 128, 64)),
    "causal attention": one("t = Tanh(x) y = Attention<is_causal=1>(x, t, x)", (1, 2, 21, 8), (1, 12, 256, 64)),
    "LayerNormalization": weighted("y = LayerNormalization(x, w)", ((3, 7, 45), (45,)), ((1, 128, 768), (768,))),
    "RMSNormalization": weighted("y = RMSNormalization(x, w)", ((3, 7, 45), (45,)), ((1, 128, 576), (576,))),
    "softmax": one("y = Softmax(x)", (5, 53), (12, 128, 128)),
    "maximum of a window": one(
        "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)", (1, 21, 9, 11), (1, 64, 112, 112)
    ),
    "mean of a window": one("y = AveragePool<kernel_shape=[3,2], pads=[1,0,1,1]>(x)", (1, 21, 9, 11), (1, 64, 28, 28)),
    "mean of an image": one("y = GlobalAveragePool(x)", (2, 19, 7, 9), (1, 1280, 7, 7), types=("float",)),
    "nearest": one('y = Resize<mode="nearest">(x, , tscales)', (1, 5, 6, 7), (1, 96, 40, 40)),
    "linear": one('y = Resize<mode="linear">(x, , tscales)', (1, 5, 6, 7), (1, 64, 40, 40)),
    "sum of rows": one("y = ReduceSum(x, taxis)", (7, 39), (128, 768)),
    "largest of a row": one("y = ReduceMax<keepdims=0>(x, taxis)", (39, 21), (768, 512)),
    "squares": one("y = ReduceL2(x, taxis)", (39, 21), (768, 512)),
    "transposition": one("y = Transpose<perm=[0,2,1,3]>(x)", (1, 9, 7, 5), (1, 128, 12, 64)),
    "rows of a table": weighted("t = Gather(w, tindices) y = Add(t, x)", ((3, 21), (30, 21)), ((3, 384), (30522, 384))),
    "elements": one("t = Gelu(x) t1 = Sigmoid(t) t2 = Mul(t1, x) t3 = Abs(t2) y = Sqrt(t3)", (3, 41), (128, 3072)),
    "functions": one("t = Exp(x) t1 = Tanh(x) t2 = Erf(x) t3 = Sum(t, t1, t2) y = Sum(t3, x)", (3, 41), (128, 1000)),
    "circles": one("t = Sin(x) t1 = Cos(x) y = Concat<axis=0>(t, t1)", (3, 41), (128, 1000)),
    "HardSwish": one("y = HardSwish(x)", (3, 41), (128, 1000)),
    "concatenation": one("t = Relu(x) t1 = Neg(x) y = Concat<axis=1>(t, x, t1)", (2, 11, 5), (1, 96, 784)),
    "GRU": recurrent("GRU", 3),
    "LSTM": recurrent("LSTM", 4),
    "bytes": Case(
        f"{BYTES} y = MatMul(ta, tb)", {"x": (5, 37), "q": (37, 50)}, {"x": (128, 384), "q": (384, 1536)}, ("float",)
    ),
    "convolution of bytes": Case(
        f"{BYTES} y = Conv<pads=[1,1,1,1]>(ta, tb)",
        {"x": (1, 19, 9, 10), "q": (21, 19, 3, 3)},
        {"x": (1, 64, 56, 56), "q": (64, 64, 3, 3)},
        ("float",),
    ),
}
"""Each kind once; `{size}`: channels, or elements of a state. Constants that the bodies name come from `CONSTANTS`."""

CONSTANTS: dict[str, Array] = {
    "tscales": np.array([1, 1, 2, 2], np.float32),
    "taxis": np.array([0]),
    "tindices": np.array([2, 0, 29]),
    "tscale": np.array(0.05, np.float32),
    "tzero": np.array(120, np.uint8),
}


_NAMES = re.compile(r"\b(x|w|v|b|q|y|t[a-z0-9]*)\b(?!=)")
"""Of values; an attribute's name is followed by its value."""


def graph(dtype: str, large: bool) -> tuple[str, dict[str, Array], dict[str, Array], list[str]]:
    """The text of a graph of all cases, its weights, its inputs, in float32 what the type can hold, and the cases."""
    rng = np.random.default_rng(0)
    names = [name for name, case in CASES.items() if dtype in case.types]
    bodies: list[str] = []
    weights: dict[str, Array] = {}
    inputs: dict[str, Array] = {}
    for index, name in enumerate(names):
        case = CASES[name]
        shapes = case.large if large else case.small
        size = shapes["v"][-1] if "v" in shapes else shapes["x"][1]
        bodies.append(_NAMES.sub(rf"c{index}\1", case.body.replace("{size}", str(size))))
        for operand, shape in shapes.items():
            values = rng.standard_normal(shape).astype(np.float32) * (1.0 if operand == "x" else 0.1)
            values = values.astype(ml_dtypes.bfloat16).astype(np.float32)
            if operand == "q":
                values = (values * 300).astype(np.int8)
            (inputs if operand == "x" else weights)[f"c{index}{operand}"] = values
        weights |= {f"c{index}{key}": CONSTANTS[key] for key in set(_NAMES.findall(case.body)) & CONSTANTS.keys()}
    parameters = ", ".join(f"TYPE[{','.join(map(str, value.shape))}] {name}" for name, value in inputs.items())
    results = ", ".join(f"TYPE c{index}y" for index in range(len(names)))
    return f"g ({parameters}) => ({results}) {{ {' '.join(bodies)} }}", weights, inputs, names


def model(text: str, weights: dict[str, Array], dtype: str) -> onnx.ModelProto:
    """The graph in a type; shapes of outputs are inferred."""
    proto = parse(text.replace("TYPE", dtype), weights)
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return proto


def disagreements(dtype: str, target: str, large: bool) -> dict[str, float]:
    """The cases whose results are too far from ONNX Runtime's, which computes in float32."""
    text, weights, inputs, names = graph(dtype, large)
    wanted = oracle(model(text, weights, "float"), list(inputs.values()))
    if dtype == "bfloat16":
        inputs = {name: value.astype(ml_dtypes.bfloat16) for name, value in inputs.items()}
        weights = {
            name: value.astype(ml_dtypes.bfloat16) if name.lstrip("c0123456789") in "wvb" else value
            for name, value in weights.items()
        }
    found = compiled(model(text, weights, dtype), target).run(list(inputs.values()), 2)
    assert [str(y.dtype) for y in found] == ["float32" if dtype == "float" else dtype] * len(names)
    far = {name: distance(y.astype(np.float32), w) for name, y, w in zip(names, found, wanted, strict=True)}
    return {name: error for name, error in far.items() if not error <= BOUNDS[dtype]}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float", "bfloat16"])
def test_every_kind_of_kernel_agrees(dtype: str, target: str) -> None:
    assert not disagreements(dtype, usable(target), large=False)


@pytest.mark.parametrize("target", ["cpu:x86-64-v4", "cpu:x86-64-v3", "cpu:generic"])
def test_means_of_images_of_bfloat16(target: str) -> None:
    x = np.random.default_rng(3).standard_normal((2, 19, 7, 9)).astype(ml_dtypes.bfloat16)
    text = "g (TYPE[2,19,7,9] x) => (TYPE y) { y = GlobalAveragePool(x) }"
    (y,) = compiled(model(text, {}, "bfloat16"), usable(target)).run([x], 2)
    exact = x.astype(np.float32).mean((2, 3), keepdims=True)
    assert np.abs(y.astype(np.float32) - exact).max() <= 2**-8 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float", "bfloat16"])
def test_every_kind_of_kernel_agrees_with_the_sizes_of_models(dtype: str, target: str) -> None:
    assert not disagreements(dtype, usable(target), large=True)
