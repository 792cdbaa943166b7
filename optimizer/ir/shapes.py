"""Shapes of all values of a model, and the elements of its small integer tensors, symbolically.

One walk in topological order, without serialising the model and without touching weights. Every size is an integer or
a polynomial over symbols (`optimizer.ir.symbolic`); a size of which nothing is known is a symbol of its own, written
with a leading `?`, so that even then two axes can be known to be equally long.

Shapes written at inputs and initializers are believed, and so are those at the outputs of operators that ONNX does
not know. Those at other values are only believed where nothing can be inferred: files are often edited at the inputs
and left as they were inside.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Sequence

import onnx_ir as ir

from optimizer.ir.data_rules import DATA_RULES, MAX_ELEMENTS
from optimizer.ir.onnx_inference import OnnxInference
from optimizer.ir.query import constant, has_reference, int_attribute, ints_attribute
from optimizer.ir.shape_info import UNKNOWN, Dims, Info, NodeView, Rule, tensor
from optimizer.ir.shape_rules import SHAPE_RULES
from optimizer.ir.symbolic import Dim, Expr, parse_dim, symbol
from optimizer.ir.walk import subgraphs

__all__ = ["Shapes", "is_anonymous"]

_ANONYMOUS_NAMES = frozenset({"", "?", "-1", "None", "unk", "unknown"})
"""What exporters write for a size that has no name; two of these are not equal."""

_BROKEN_NODE = (ArithmeticError, LookupError, TypeError, ValueError)
"""What a rule raises on a node that breaks its operator's definition; nothing is known of its outputs then."""

_META_KEY = "tersor.shape_info"


def is_anonymous(dim: Dim) -> bool:
    """Whether a size depends on one that has no name in the model."""
    return isinstance(dim, Expr) and any("?" in name for name in dim.symbols)


class Shapes:
    """What is known of the values of a model as it is now.

    Args:
        model: Its nodes are in topological order. It is not changed; what is known of its values stays valid while a
            pass rewires them, and of values made later nothing is known.
        previous: What was known before the model changed. Nodes whose inputs are still the same are not looked at
            again.
    """

    def __init__(self, model: ir.Model, previous: Shapes | None = None) -> None:
        self._known: dict[ir.Value, Info] = {}
        self._fresh: Callable[[], Expr] = _fresh_symbols() if previous is None else previous._fresh
        self._onnx: OnnxInference = OnnxInference(self._fresh) if previous is None else previous._onnx
        self._functions = frozenset(model.functions)
        self._ruled: dict[ir.Node, _Ruled] = {}
        same_functions = previous is not None and previous._functions == self._functions
        self._small: dict[ir.Value, tuple[ir.TensorProtocol, Info]] = {}
        self._small_before = {} if previous is None else previous._small
        self._ruled_before = previous._ruled if previous is not None and same_functions else {}
        self._graph(model.graph, model.opset_imports)
        for function in model.functions.values():
            self._graph(function.graph, function.opset_imports)
        self._ruled_before = {}

    def dims(self, value: ir.Value | None) -> Dims | None:
        """The shape; `None` when not even the rank is known."""
        return self._info(value).dims

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape when it is made of plain integers."""
        dims = self.dims(value)
        if dims is None:
            return None
        plain = tuple(dim for dim in dims if isinstance(dim, int))
        return plain if len(plain) == len(dims) else None

    def data(self, value: ir.Value | None) -> Dims | None:
        """The elements of a small integer or boolean tensor of rank 0 or 1."""
        return self._info(value).data

    def type(self, value: ir.Value | None) -> ir.TypeProtocol | None:
        """The type."""
        return self._info(value).type

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """The element type."""
        found = self.type(value)
        return None if found is None else found.dtype

    def learn(self, new: ir.Value, old: ir.Value) -> None:
        """A pass has made `new`, which is what `old` was."""
        if new not in self._known:
            self._known[new] = self._info(old)

    def include(self, node: ir.Node, opset: int) -> None:
        """A pass has made `node`, of which all inputs are known: find out what it gives."""
        self._node(node, {"": opset})

    def _info(self, value: ir.Value | None) -> Info:
        if value is None:
            return UNKNOWN
        found = self._known.get(value)
        if found is None:
            # Inputs and constants are looked at when they are first needed; nodes have been by then.
            found = self._constant(value) or self._declared(value)
            self._known[value] = found
        return found

    def _constant(self, value: ir.Value) -> Info | None:
        content = constant(value)
        if content is None:
            return None
        info: Info | None = content.meta.get(_META_KEY)
        if info is not None:
            return info
        before = self._small_before.get(value)
        info = before[1] if before is not None and before[0] is content else _constant_info(content)
        if info.data is None:
            content.meta[_META_KEY] = info  # With the tensor: kept here, a large one could not be freed.
        else:
            self._small[value] = content, info
        return info

    def _declared(self, value: ir.Value) -> Info:
        if value.shape is None:
            return Info(value.type)
        return Info(value.type, tuple(self._declared_dim(dim) for dim in value.shape))

    def _declared_dim(self, dim: int | ir.SymbolicDim) -> Dim:
        if isinstance(dim, int):
            return dim if dim >= 0 else self._fresh()
        return self._fresh() if dim.value is None or dim.value in _ANONYMOUS_NAMES else parse_dim(dim.value)

    def _graph(self, graph: ir.Graph, opsets: dict[str, int]) -> None:
        for node in graph:
            self._node(node, opsets)

    def _node(self, node: ir.Node, opsets: dict[str, int]) -> None:
        if node.op_type == "Constant" and node.domain == "":
            return
        known = self._known
        # What is known is looked up here, without a call: this is where a pipeline spends its time.
        inputs = [None if value is None else known.get(value) or self._info(value) for value in node.inputs]
        opset = opsets.get(node.domain, 0)
        ruled = self._ruled_before.get(node)
        found: Sequence[Info]
        if ruled is not None and ruled.holds_for(node, opset, inputs):
            self._ruled[node] = ruled
            found = ruled.found
        else:
            try:
                found = self._outputs(NodeView(node, opset, inputs, self._fresh), opsets)
            except _BROKEN_NODE:
                found = ()
        for index, value in enumerate(node.outputs):
            info = found[index] if index < len(found) else UNKNOWN  # A body may have fewer outputs than its node.
            complete = info.type is not None and info.dims is not None
            known[value] = info if complete else self._completed(value, info)

    def _outputs(self, view: NodeView, opsets: dict[str, int]) -> Sequence[Info]:
        node = view.node
        for graph in subgraphs(node):
            self._graph(graph, opsets)
        if node.op_identifier() in self._functions or has_reference(node):
            return [UNKNOWN] * len(node.outputs)
        if node.domain == "" and node.op_type in _CONTROL_FLOW:
            return _CONTROL_FLOW[node.op_type](self, view, opsets)
        rule = SHAPE_RULES.get(node.op_type) if node.domain == "" else None
        found = None if rule is None else _by_rule(rule, view)
        if found is None:
            return self._onnx.infer(view)
        # Only this is kept for the next time: ONNX looks at the elements of constants as well, which no rule does.
        self._ruled[node] = _Ruled(view, found)
        return found

    def _completed(self, value: ir.Value, info: Info) -> Info:
        """What was inferred, completed by what is written at the value where nothing was."""
        if info.type is None:
            info = info._replace(type=value.type)
        if info.dims is None and value.shape is not None:
            info = info._replace(dims=self._declared(value).dims)
        return info

    # --- Control flow ---

    def _if(self, view: NodeView, opsets: dict[str, int]) -> list[Info]:
        del opsets
        branches = [[self._info(value) for value in graph.outputs] for graph in subgraphs(view.node)]
        return [self._either(infos) for infos in zip(*branches, strict=True)]

    def _loop(self, view: NodeView, opsets: dict[str, int]) -> list[Info]:
        body = next(subgraphs(view.node))
        carried = len(view.inputs) - 2
        start = [view.info(i + 2) for i in range(carried)]
        self._settle(body, body.inputs[2:], start, body.outputs[1 : carried + 1], opsets)
        final = [self._info(value) for value in body.inputs[2:]]
        stacked = [self._stacked(value, 0) for value in body.outputs[carried + 1 :]]
        return [*(self._either([a, b]) for a, b in zip(start, final, strict=True)), *stacked]

    def _scan(self, view: NodeView, opsets: dict[str, int]) -> list[Info]:
        body = next(subgraphs(view.node))
        scanned = int_attribute(view.node, "num_scan_inputs", 0)
        carried = len(view.inputs) - scanned
        axes = ints_attribute(view.node, "scan_input_axes") or (0,) * scanned
        for i, axis in enumerate(axes):
            self._known[body.inputs[carried + i]] = _without_axis(view.info(carried + i), axis)
        start = [view.info(i) for i in range(carried)]
        self._settle(body, body.inputs[:carried], start, body.outputs[:carried], opsets)
        final = [self._info(value) for value in body.inputs[:carried]]
        outputs = body.outputs[carried:]
        axes = ints_attribute(view.node, "scan_output_axes") or (0,) * len(outputs)
        stacked = [self._stacked(value, axis) for value, axis in zip(outputs, axes, strict=True)]
        return [*(self._either([a, b]) for a, b in zip(start, final, strict=True)), *stacked]

    def _settle(
        self,
        body: ir.Graph,
        inputs: Sequence[ir.Value],
        start: Sequence[Info],
        outputs: Sequence[ir.Value],
        opsets: dict[str, int],
    ) -> None:
        """Find shapes of the carried values that hold in every iteration.

        First those of the first iteration are assumed. Where the body gives another shape, only what both have in
        common is assumed, until the body confirms it; each round gives up something, so it ends.
        """
        assumed = [info._replace(data=None) for info in start]
        given_up: set[Dim] = set()
        while True:
            self._known.update(zip(inputs, assumed, strict=True))
            self._graph(body, opsets)
            given = [self._info(value) for value in outputs]
            agreed = [self._either([a, b]) for a, b in zip(assumed, given, strict=True)]
            if all(_confirms(a, b, given_up) for a, b in zip(assumed, agreed, strict=True)):
                return
            before = {dim for info in assumed for dim in info.dims or ()}
            given_up.update(dim for info in agreed for dim in info.dims or () if dim not in before)
            assumed = agreed

    def _either(self, infos: Sequence[Info]) -> Info:
        """What holds for a value that is one of several."""
        first, *rest = infos
        type_ = first.type if all(info.type == first.type for info in rest) else None
        data = first.data if all(info.data == first.data for info in rest) else None
        if any(info.dims is None or first.dims is None or len(info.dims) != len(first.dims) for info in infos):
            return Info(type_, None)
        shapes = [info.dims for info in infos if info.dims is not None]
        dims = tuple(sizes[0] if len(set(sizes)) == 1 else self._fresh() for sizes in zip(*shapes, strict=True))
        return Info(type_, dims, data)

    def _stacked(self, value: ir.Value, axis: int) -> Info:
        """What a scan output is: the value of every iteration along a new axis."""
        info = self._info(value)
        if info.dims is None:
            return Info(info.type)
        # A size that has no name may differ from one iteration to the next.
        dims = [self._fresh() if is_anonymous(dim) else dim for dim in info.dims]
        dims.insert(axis if axis >= 0 else axis + len(dims) + 1, self._fresh())
        return Info(info.type, tuple(dims))


class _Ruled:
    """What a rule found out about a node, and all that it looked at."""

    __slots__ = ("_attributes", "_inputs", "_op_type", "_opset", "_outputs", "found")

    def __init__(self, view: NodeView, found: Sequence[Info]) -> None:
        self._inputs = view.inputs
        self._op_type = view.node.op_type
        self._opset = view.opset
        self._attributes = tuple(view.node.attributes.data.values())
        self._outputs = len(view.node.outputs)
        self.found = found

    def holds_for(self, node: ir.Node, opset: int, inputs: list[Info | None]) -> bool:
        attributes = node.attributes.data
        return (
            self._inputs == inputs
            and self._op_type == node.op_type
            and node.domain == ""
            and self._opset == opset
            and self._outputs == len(node.outputs)
            and len(self._attributes) == len(attributes)
            and (not attributes or all(map(operator.is_, self._attributes, attributes.values())))
        )


def _by_rule(rule: Rule, view: NodeView) -> list[Info] | None:
    ruled = rule(view)
    if ruled is None:
        return None
    found = ruled if isinstance(ruled, list) else [ruled]
    return [_with_data(view, found[0]), *found[1:]] if found else found


def _fresh_symbols() -> Callable[[], Expr]:
    numbers = itertools.count()
    return lambda: symbol(f"?{next(numbers)}")


def _constant_info(content: ir.TensorProtocol) -> Info:
    dims, dtype = content.shape.numpy(), content.dtype
    if len(dims) > 1 or math.prod(dims) > MAX_ELEMENTS or not (dtype.is_integer() or dtype == ir.DataType.BOOL):
        return tensor(dtype, dims)
    return tensor(dtype, dims, tuple(int(item) for item in content.numpy().reshape(-1)))


_CONTROL_FLOW = {"If": Shapes._if, "Loop": Shapes._loop, "Scan": Shapes._scan}


def _with_data(view: NodeView, output: Info) -> Info:
    node = view.node
    rule = DATA_RULES.get(node.op_type) if node.domain == "" else None
    if rule is None or output.type is None or output.dims is None or len(output.dims) > 1:
        return output
    if not (output.type.dtype.is_integer() or output.type.dtype == ir.DataType.BOOL):
        return output
    data = rule(view, output)
    count = output.dims[0] if output.dims else 1
    if data is None or len(data) != count or len(data) > MAX_ELEMENTS:
        return output
    if any(isinstance(item, int) and not -(2**63) <= item < 2**63 for item in data):
        return output
    return output._replace(data=data)


def _without_axis(info: Info, axis: int) -> Info:
    if not info.dims:
        return Info(info.type)
    axis = axis if axis >= 0 else axis + len(info.dims)
    return Info(info.type, info.dims[:axis] + info.dims[axis + 1 :])


def _confirms(assumed: Info, agreed: Info, given_up: set[Dim]) -> bool:
    """Whether nothing had to be given up that was not given up before."""
    if assumed.dims is None or agreed.dims is None:
        return assumed.dims is agreed.dims
    return all(a == b or a in given_up for a, b in zip(assumed.dims, agreed.dims, strict=True))
