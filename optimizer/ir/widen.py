"""What a bfloat16 graph computes, for a runtime that has no bfloat16: in float32, with each result rounded.

That is the definition of such a graph as far as ONNX gives one: a kernel may sum in float32, and what a node gives has
8 bits.
"""

from __future__ import annotations

import onnx_ir as ir

from optimizer.ir.query import int_attribute, is_op, tensor_of
from optimizer.ir.shapes import Shapes
from optimizer.ir.walk import all_graphs, all_nodes

__all__ = ["has_bfloat16", "widened"]

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def has_bfloat16(model: ir.Model) -> bool:
    """Whether a value of the model says that it is bfloat16, or a `Cast` does."""
    if any(value.dtype == _NARROW for value in (*model.graph.inputs, *model.graph.initializers.values())):
        return True
    return any(
        any(value.dtype == _NARROW for value in node.outputs)
        or (is_op(node, "Cast") and int_attribute(node, "to", 0) == _NARROW)
        for node in all_nodes(model)
    )


def widened(model: ir.Model, *, rounds: bool = True) -> ir.Model:
    """A copy that computes in float32. Its inputs and outputs keep their types.

    Args:
        model: Not changed. Without bfloat16 it is given back as it is, and so it is with functions: their values have
            no types.
        rounds: Whether results are rounded to bfloat16; otherwise they are those of float32.
    """
    if model.functions or not has_bfloat16(model):
        return model
    copy = model.clone()
    shapes = Shapes(copy)
    narrow = {value: None for node in all_nodes(copy) for value in node.outputs if shapes.dtype(value) == _NARROW}
    for node in list(all_nodes(copy)):
        _widen_attributes(node)
    for graph in all_graphs(copy):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype == _NARROW:
                value.const_value = _widened_tensor(tensor)
                value.type = ir.TensorType(_WIDE)
        for value in graph.inputs:
            if value.dtype == _NARROW:
                _widen_input(copy.graph, value)
    for value in narrow:
        _round_result(copy.graph, value, rounds)
    return copy


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and tensor_of(attribute).dtype == _NARROW:
            node.attributes[name] = ir.AttrTensor(name, _widened_tensor(tensor_of(attribute)))
    named = node.attributes.get("dtype")
    if not node.domain and named is not None and named.as_int() == _NARROW:
        node.attributes["dtype"] = ir.AttrInt64("dtype", _WIDE)


def _widened_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def read() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype("float32"))

    return ir.LazyTensor(read, _WIDE, ir.Shape(tensor.shape.numpy()))


def _widen_input(main: ir.Graph, value: ir.Value) -> None:
    """Inside subgraphs everything is float32; the inputs of the model stay what they are."""
    if value not in main.inputs:
        value.type = ir.TensorType(_WIDE)
        return
    cast = _cast(value, _WIDE)
    value.replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, value)
    if len(main):
        main.insert_before(main[0], cast)


def _round_result(main: ir.Graph, value: ir.Value, rounds: bool) -> None:
    """Round what a node gives, and widen it again; at an output of the model it is only rounded."""
    node = value.producer()
    assert node is not None and node.graph is not None, "a node gave it"
    is_output = any(output is value for output in main.outputs)
    is_rounded = rounds and node.op_type == "Cast" and not node.domain
    last, narrow, wide = node, value, value
    if not is_rounded:
        value.type = ir.TensorType(_WIDE)
        if node.op_type == "Cast" and not node.domain:
            node.attributes["to"] = ir.AttrInt64("to", _WIDE)
        if rounds or is_output:
            last = _after(last, _cast(value, _NARROW))
            narrow = last.outputs[0]
    if rounds:
        last = _after(last, _cast(narrow, _WIDE))
        wide = last.outputs[0]
    own = {each for each in (narrow.producer(), wide.producer()) if each is not node}
    for user, index in list(value.uses()):
        if user not in own:
            user.replace_input_with(index, wide)
    if value.is_graph_output():
        own_graph = node.graph
        assert isinstance(own_graph, ir.Graph), "there are no functions"
        for index, output in enumerate(own_graph.outputs):
            if output is value:
                own_graph.outputs[index] = narrow if own_graph is main else wide
    if is_output and narrow is not value:
        narrow.name, value.name = value.name, f"{value.name}_wide"


def _after(node: ir.Node, new: ir.Node) -> ir.Node:
    assert node.graph is not None, "it is in a graph"
    node.graph.insert_after(node, new)
    return new


def _cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": to})
    cast.outputs[0].name = f"{value.name}_as_{to.name.lower()}"
    cast.outputs[0].type = ir.TensorType(to)
    cast.outputs[0].shape = value.shape
    return cast
