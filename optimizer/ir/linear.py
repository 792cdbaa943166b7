"""Layers that multiply by a constant weight: scale and shift what they give, by changing the weight and the bias.

Letters: `O` output channels, `I` input channels, `G` groups, `K` the length of the reduction of a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.ir.edit import Editor, Scope
from optimizer.ir.query import FLOATS, constant, float_attribute, input_at, int_attribute, is_op, only_user

__all__ = ["Linear", "Normalization", "is_inference", "linear_before", "normalization_before"]

Vector = npt.NDArray[np.float64]

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Linear:
    """A layer with a constant weight that nothing else uses, and no bias or a constant one.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: `[O, I/G, ...]` (Conv), `[I, O/G, ...]` (ConvTranspose), `[K, O]` or `[O, K]` (Gemm), `[K, O]`
            (MatMul).
        bias: `[O]`, or `None`.
        channels: `O`.
    """

    node: ir.Node
    weight: npt.NDArray[Any]
    bias: Vector | None
    channels: int

    @property
    def channel_axis_from_end(self) -> int:
        """Which axis of the output the channels are, counted from the end: 1 is the last."""
        return self.weight.ndim - 1 if self.node.op_type.startswith("Conv") else 1

    @property
    def least_output_rank(self) -> int:
        """How many axes the output has at least: a constant with more of them would give it more."""
        return 1 if self.node.op_type == "MatMul" else self.weight.ndim

    @property
    def takes_shift(self) -> bool:
        """Whether there is a place for a bias."""
        return self.node.op_type != "MatMul"

    def scaled(self, editor: Editor, scope: Scope, scale: Vector, shift: Vector | None) -> ir.Node | None:
        """A node that gives `scale * y + shift` where this one gives `y`, both `[O]` along the channels.

        Adding a shift of zeros is not the same as adding none: it turns `-0.0` into `0.0`.

        Returns:
            The node, in no graph yet; `None` when a number would overflow, or when there is no place for the shift.
        """
        dtype = self.weight.dtype
        if not self.takes_shift and (shift is not None or self.bias is not None):
            return None
        terms = [term for term in (None if self.bias is None else self.bias * scale, shift) if term is not None]
        with np.errstate(over="ignore", invalid="ignore"):
            weight = (self.weight.astype(np.float64) * self._along_channels(scale)).astype(dtype)
            bias = sum(terms, np.zeros(self.channels)).astype(dtype)
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            return None
        inputs = [self.node.inputs[0], self._constant(editor, scope, 1, "weight", weight)]
        if terms:
            inputs.append(self._constant(editor, scope, 2, "bias", bias))
        attributes = {name: value for name, value in self.node.attributes.items() if name != "beta"}
        return ir.Node("", self.node.op_type, inputs, attributes, version=self.node.version)

    def _along_channels(self, scale: Vector) -> npt.NDArray[np.float64]:
        """The scale in a shape that broadcasts against the weight."""
        rank = self.weight.ndim
        if self.node.op_type == "Conv":
            return scale.reshape(-1, *[1] * (rank - 1))
        if self.node.op_type == "ConvTranspose":
            groups = int_attribute(self.node, "group", 1)
            per_input = np.repeat(scale.reshape(groups, -1), self.weight.shape[0] // groups, axis=0)
            return per_input.reshape(*per_input.shape, *[1] * (rank - 2))
        return scale.reshape(-1, 1) if int_attribute(self.node, "transB", 0) else scale

    def _constant(self, editor: Editor, scope: Scope, index: int, kind: str, content: npt.NDArray[Any]) -> ir.Value:
        old = input_at(self.node, index)
        name = old.name if old is not None else f"{self.node.outputs[0].name}_{kind}"
        return editor.constant(scope, self.node, name, content)


@dataclass(frozen=True)
class Normalization:
    """A BatchNormalization outside training with a constant scale and bias; it scales and shifts channels too.

    Attributes:
        node: The normalization.
        weight: The scale, `[O]`.
        bias: `[O]`.
        rank: The number of axes of the output.
    """

    node: ir.Node
    weight: npt.NDArray[Any]
    bias: Vector
    rank: int

    @property
    def channels(self) -> int:
        """`O`."""
        return len(self.weight)

    @property
    def channel_axis_from_end(self) -> int:
        """Which axis of the output the channels are, counted from the end: 1 is the last."""
        return self.rank - 1

    @property
    def least_output_rank(self) -> int:
        """How many axes the output has at least: a constant with more of them would give it more."""
        return self.rank

    def scaled(self, editor: Editor, scope: Scope, scale: Vector, shift: Vector | None) -> ir.Node | None:
        """A node that gives `scale * y + shift` where this one gives `y`, as in `Linear`."""
        with np.errstate(over="ignore", invalid="ignore"):
            weight = (self.weight.astype(np.float64) * scale).astype(self.weight.dtype)
            bias = (self.bias * scale + (0 if shift is None else shift)).astype(self.weight.dtype)
        if not (np.isfinite(weight.astype(np.float64)).all() and np.isfinite(bias.astype(np.float64)).all()):
            return None
        inputs = list(self.node.inputs)
        for index, content in ((1, weight), (2, bias)):
            old = inputs[index]
            inputs[index] = editor.constant(scope, self.node, None if old is None else old.name, content)
        return ir.Node("", self.node.op_type, inputs, self.node.attributes.copy(), version=self.node.version)


def normalization_before(editor: Editor, scope: Scope, user: ir.Node, index: int) -> Normalization | None:
    """The normalization that gives an input of `user` and of no other node, when it can be changed."""
    value = input_at(user, index)
    node = None if value is None else value.producer()
    if value is None or node is None or node.graph is not user.graph or only_user(value) is not user:
        return None
    if not is_op(node, "BatchNormalization") or not is_inference(scope, node):
        return None
    scale, bias, dims = constant(input_at(node, 1)), constant(input_at(node, 2)), editor.shapes.dims(node.inputs[0])
    if scale is None or bias is None or dims is None or len(dims) < 2 or scale.dtype not in FLOATS:
        return None
    if len(scale.shape) != 1 or scale.shape != bias.shape:
        return None
    return Normalization(node, scale.numpy(), bias.numpy().astype(np.float64), len(dims))


def is_inference(scope: Scope, node: ir.Node) -> bool:
    """Whether a BatchNormalization uses given statistics, one for each channel, and only its first output is used."""
    used = [output for output in node.outputs[1:] if output.uses() or output.is_graph_output()]
    if used or len(node.inputs) != 5 or scope.opset < 7:
        return False
    # Up to opset 13 several outputs meant training; up to opset 8 the statistics could be those of single elements.
    if scope.opset < 14 and len([output for output in node.outputs if output.name]) > 1:
        return False
    return not int_attribute(node, "training_mode", 0) and int_attribute(node, "spatial", 1) == 1


def linear_before(user: ir.Node, index: int) -> Linear | None:
    """The layer that gives an input of `user` and of no other node, when it can be changed.

    It must stand in the same graph: it is not to be drawn into a loop.
    """
    value = input_at(user, index)
    node = None if value is None else value.producer()
    if value is None or node is None or node.graph is not user.graph or only_user(value) is not user:
        return None
    if not is_op(node, *_LAYERS):
        return None
    weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
    if weight is None or weight.dtype not in FLOATS or not _is_only_user(node, 1):
        return None
    if (bias is None) != (input_at(node, 2) is None):
        return None
    channels = _channels(node, weight.shape.numpy())
    if channels is None:
        return None
    found = None if bias is None else _bias(node, bias.numpy(), channels)
    if bias is not None and found is None:
        return None
    return Linear(node, weight.numpy(), found, channels)


def _is_only_user(node: ir.Node, index: int) -> bool:
    value = input_at(node, index)
    return value is not None and only_user(value) is node


def _channels(node: ir.Node, shape: Sequence[int]) -> int | None:
    if node.op_type == "Conv":
        return shape[0] if len(shape) > 2 else None
    if node.op_type == "ConvTranspose":
        groups = int_attribute(node, "group", 1)
        return shape[1] * groups if len(shape) > 2 and groups > 0 and shape[0] % groups == 0 else None
    if len(shape) != 2:
        return None
    return shape[0] if int_attribute(node, "transB", 0) else shape[1]


def _bias(node: ir.Node, bias: npt.NDArray[Any], channels: int) -> Vector | None:
    """The bias `[O]`; `None` when it is not the same for all rows, which only Gemm allows."""
    plain = bias.astype(np.float64)
    if node.op_type == "Gemm":
        plain = plain * float_attribute(node, "beta", 1.0)
    if plain.size == 1:
        return np.full(channels, plain.reshape(-1)[0])
    return plain.reshape(-1) if plain.size == plain.shape[-1] == channels else None
