"""What a graph costs: nodes, parameters, bytes, floating-point operations, and memory for activations.

FLOPs count a multiply-add as two and an element-wise operation as one an output element, however expensive; moving
data costs none. They are for comparing a graph with itself before and after a pass, and for attained FLOP/s.

Peak activation memory is that of running the nodes in their order: a value lives from its producer to its last user;
inputs and outputs of the graph count, weights do not, nor what a DequantizeLinear makes of one: kernels read the codes.

The shapes of the inputs may be given. A symbolic dimension that does not follow from them counts as 1, and a value of
unknown rank counts nothing: all figures are lower bounds then, and exact otherwise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx_ir as ir

from optimizer.ir.figures import Costs
from optimizer.ir.query import constant, int_attribute, is_op
from optimizer.ir.shapes import Shapes
from optimizer.ir.symbolic import Dim
from optimizer.ir.walk import nested_graphs, subgraphs

__all__ = ["Costs", "InputShapes", "Sizes", "alive_bytes", "model_costs", "node_flops", "peak_activation_bytes"]


InputShapes = Mapping[str, Sequence[int]]


class Sizes:
    """Sizes of the values of a model, as numbers.

    Args:
        model: Its shapes are inferred from those of its inputs; not changed.
        input_shapes: Shapes of inputs by name; where none is given, what the model declares.
    """

    def __init__(self, model: ir.Model, input_shapes: InputShapes | None = None) -> None:
        with _declared(model.graph, input_shapes or {}):
            self._shapes = Shapes(model)
            self._inputs = {value: self._shapes.dims(value) for value in model.graph.inputs}

    def shape(self, value: ir.Value | None) -> list[int]:
        """The shape, with lower bounds where it is not known; an empty list where the rank is not."""
        return [_least(dim) for dim in self._dims(value) or ()]

    def elements(self, value: ir.Value | None) -> int:
        """The number of elements, a lower bound; 0 where the rank is not known."""
        return 0 if value is None or self._dims(value) is None else math.prod(self.shape(value))

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The element type, if it is known."""
        return self._shapes.dtype(value)

    def bytes(self, value: ir.Value) -> int:
        """The memory that the value takes; 0 where the type or the rank is not known, or for strings."""
        dtype = self.dtype(value)
        if dtype in (None, ir.DataType.UNDEFINED, ir.DataType.STRING):
            return 0
        return (self.elements(value) * dtype.bitwidth + 7) // 8

    def is_symbolic(self, value: ir.Value) -> bool:
        """Whether some of the shape is not known."""
        dims = self._dims(value)
        return dims is None or not all(isinstance(dim, int) for dim in dims)

    def _dims(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        if value in self._inputs:
            return self._inputs[value]
        return self._shapes.dims(value)


@contextlib.contextmanager
def _declared(graph: ir.Graph, input_shapes: InputShapes) -> Iterator[None]:
    """The inputs declare these shapes inside the block, and their own again after it."""
    before = [(value, value.shape) for value in graph.inputs if value.name in input_shapes]
    for value, _ in before:
        value.shape = ir.Shape(list(input_shapes[value.name or ""]))
    try:
        yield
    finally:
        for value, shape in before:
            value.shape = shape


def _least(dim: Dim) -> int:
    """The size when every symbol in it is 1."""
    return dim if isinstance(dim, int) else max(1, sum(dim.terms.values()))


def model_costs(model: ir.Model, input_shapes: InputShapes | None = None) -> Costs:
    """The costs of a model.

    Args:
        model: Not changed.
        input_shapes: Shapes of inputs by name; where none is given, what the model declares.
    """
    sizes = Sizes(model, input_shapes)
    nodes = [node for graph in nested_graphs(model.graph) for node in graph]
    weights = {id(tensor): tensor for tensor in _weights(model)}
    values = [value for node in nodes for value in node.outputs]
    return Costs(
        nodes=len(nodes),
        parameters=sum(tensor.size for tensor in weights.values()),
        bytes=sum(_tensor_bytes(tensor) for tensor in weights.values()),
        flops=sum(node_flops(node, sizes) for node in nodes),
        peak_activation_bytes=peak_activation_bytes(model.graph, sizes),
        symbolic=any(sizes.is_symbolic(value) for value in [*values, *model.graph.inputs]),
    )


def node_flops(node: ir.Node, sizes: Sizes) -> int:
    """Floating-point operations of one node; those of the nodes in its subgraphs are theirs."""
    if node.domain not in ("", "com.microsoft") or any(True for _ in subgraphs(node)):
        return 0
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(node, sizes)
    if node.op_type in _MOVES_DATA:
        return 0
    return sum(sizes.elements(value) for value in node.outputs[:1])


def peak_activation_bytes(graph: ir.Graph, sizes: Sizes) -> int:
    """The most memory that the graph's values need at one time, in bytes."""
    return max([sum(sizes.bytes(value) for value in graph.inputs), *alive_bytes(graph, sizes)])


def alive_bytes(graph: ir.Graph, sizes: Sizes) -> list[int]:
    """The memory that the graph's values need while each of its nodes runs, in bytes."""
    last_use = {value: step for step, node in enumerate(graph) for value in _reads(node)}
    last_use.update(dict.fromkeys(graph.outputs, graph.num_nodes()))
    alive = sum(sizes.bytes(value) for value in graph.inputs)
    ends: dict[int, int] = {}
    for value in graph.inputs:
        _end_after(ends, last_use.get(value, -1), sizes.bytes(value))
    steps = []
    for step, node in enumerate(graph):
        for value in () if _gives_weight(node) else node.outputs:
            size = sizes.bytes(value)
            alive += size
            _end_after(ends, last_use.get(value, step), size)
        inner = max((peak_activation_bytes(body, sizes) for body in subgraphs(node)), default=0)
        steps.append(alive + inner)
        alive -= ends.get(step, 0)
    return steps


def _end_after(ends: dict[int, int], step: int, size: int) -> None:
    ends[step] = ends.get(step, 0) + size


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in node.inputs if value is not None)
    for body in subgraphs(node):
        yield from body.outputs
        for inner in body:
            yield from _reads(inner)


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in nested_graphs(model.graph):
        yield from (value.const_value for value in graph.initializers.values() if value.const_value is not None)
        yield from (tensor for node in graph if (tensor := _constant(node)) is not None)


def _constant(node: ir.Node) -> ir.TensorProtocol | None:
    """The weight that a `Constant` node is."""
    return constant(node.outputs[0]) if is_op(node, "Constant") else None


def _gives_weight(node: ir.Node) -> bool:
    """Whether a node gives a weight: a constant, or one that was quantized."""
    return is_op(node, "Constant") or (is_op(node, "DequantizeLinear") and constant(node.inputs[0]) is not None)


def _tensor_bytes(tensor: ir.TensorProtocol) -> int:
    return 0 if tensor.dtype == ir.DataType.STRING else tensor.nbytes


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _matmul(node: ir.Node, sizes: Sizes) -> int:
    """2 * M * N * K, for each of the batch."""
    a = sizes.shape(_input(node, 0))
    return 2 * sizes.elements(node.outputs[0]) * (a[-1] if a else 1)


def _gemm(node: ir.Node, sizes: Sizes) -> int:
    a = sizes.shape(_input(node, 0))
    inner = a[0 if is_op(node, "Gemm") and int_attribute(node, "transA", 0) else -1] if len(a) == 2 else 1
    result = sizes.elements(node.outputs[0])
    return 2 * result * inner + (result if _input(node, 2) is not None else 0)


def _conv(node: ir.Node, sizes: Sizes) -> int:
    """W: [M, C/group, kernel...]: each output element takes a multiply-add for each weight of its channel."""
    weight = sizes.shape(_input(node, 1))
    bias = _input(node, 2) if node.op_type == "Conv" else None
    result = sizes.elements(node.outputs[0])
    return 2 * result * math.prod(weight[1:]) + (result if bias is not None else 0)


def _conv_transpose(node: ir.Node, sizes: Sizes) -> int:
    """W: [C, M/group, kernel...]: each input element is spread over the weights of its channel."""
    weight = sizes.shape(_input(node, 1))
    return 2 * sizes.elements(_input(node, 0)) * math.prod(weight[1:])


def _attention(node: ir.Node, sizes: Sizes) -> int:
    """Q times K and the result times V: 2 * 2 * B * S * T * (width of all heads), and 5 a score for the softmax."""
    q, k = sizes.shape(_input(node, 0)), sizes.shape(_input(node, 1))
    past = sizes.shape(_input(node, 4))
    if len(q) not in (3, 4) or len(k) != len(q):
        return 0
    total = k[-2] + (past[-2] if len(past) == 4 else 0)
    heads = q[1] if len(q) == 4 else (int_attribute(node, "q_num_heads", 1) if is_op(node, "Attention") else 1)
    return math.prod(q) * total * 4 + 5 * q[0] * heads * q[-2] * total


def _pool(node: ir.Node, sizes: Sizes) -> int:
    kernel = node.attributes.get("kernel_shape")
    size = 1 if kernel is None or kernel.is_ref() else math.prod(kernel.as_ints())
    return sizes.elements(node.outputs[0]) * size


def _recurrent(gates: int) -> Callable[[ir.Node, Sizes], int]:
    """X: [S, B, I], W: [D, gates * H, I], R: [D, gates * H, H]: both products at each step."""

    def flops(node: ir.Node, sizes: Sizes) -> int:
        x, w, r = (sizes.shape(_input(node, index)) for index in range(3))
        if len(x) != 3 or len(w) != 3 or len(r) != 3:
            return 0
        return 2 * x[0] * x[1] * (math.prod(w) + math.prod(r)) + gates * x[0] * x[1] * r[0] * r[2]

    return flops


def _per_input(factor: int) -> Callable[[ir.Node, Sizes], int]:
    return lambda node, sizes: factor * sizes.elements(_input(node, 0))


_REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

_RULES: dict[str, Callable[[ir.Node, Sizes], int]] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "BatchNormalization": _per_input(2),
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "FusedMatMul": _matmul,
    "GRU": _recurrent(3),
    "Gemm": _gemm,
    "GlobalAveragePool": _per_input(1),
    "GlobalMaxPool": _per_input(1),
    "GroupNormalization": _per_input(8),
    "InstanceNormalization": _per_input(8),
    "LSTM": _recurrent(4),
    "LayerNormalization": _per_input(8),
    "LogSoftmax": _per_input(5),
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MaxPool": _pool,
    "QLinearConv": _conv,
    "RMSNormalization": _per_input(6),
    "RNN": _recurrent(1),
    "RotaryEmbedding": _per_input(3),
    "Softmax": _per_input(5),
    **{f"Reduce{kind}": _per_input(1) for kind in _REDUCTIONS},
}

# fmt: off
_MOVES_DATA = frozenset({
    "Cast", "CastLike", "Compress", "Concat", "ConcatFromSequence", "Constant", "ConstantOfShape",
    "DepthToSpace", "Dropout", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND",
    "Identity", "NonZero", "OneHot", "Optional", "OptionalGetElement", "OptionalHasElement", "Pad",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Reshape", "ReverseSequence",
    "ScatterElements", "ScatterND", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase",
    "SequenceInsert", "SequenceLength", "Shape", "Size", "Slice", "SpaceToDepth", "Split", "SplitToSequence",
    "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
})
# fmt: on
