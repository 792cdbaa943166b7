"""Ways to break a model field by field, each drawing what it does from a `random.Random`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, helper

from tests.fuzz.picking import all_nodes, pick_graph, pick_node, pick_tensor, pick_value

Mutation = Callable[[ModelProto, Random], None]

ODD_INTEGERS = (0, -1, 1, 2, 7, 99, -99, 2**31, -(2**31), 2**40, 2**63 - 1, -(2**63))
ODD_NAMES = ("", " ", "x", "y", "../x", "a/b:c%0", "π", "\n", "None", "x" * 5000)
OPERATORS = (
    "Add",
    "MatMul",
    "Reshape",
    "Conv",
    "Loop",
    "If",
    "Scan",
    "Gather",
    "Concat",
    "Resize",
    "LSTM",
    "Cast",
    "NoSuchOp",
)
LOCATIONS = ("../../../../etc/passwd", "/etc/passwd", "missing.bin", "", ".", "weights\0.bin", "model.onnx", "a" * 5000)


def cycle(model: ModelProto, random: Random) -> None:
    """Feed a node with an output of its own or of a later node."""
    nodes = list(pick_graph(model, random).node)
    if nodes:
        early = random.randrange(len(nodes))
        late = random.choice(nodes[early:])
        nodes[early].input.append(late.output[0] if late.output else "nothing")
        if len(nodes[early].input) > 1:
            nodes[early].input[0] = nodes[early].input.pop()


def rename_input(model: ModelProto, random: Random) -> None:
    """Make a node read a value that does not exist, or another one."""
    node = pick_node(model, random)
    if node.input:
        node.input[random.randrange(len(node.input))] = random.choice(ODD_NAMES)


def rename_output(model: ModelProto, random: Random) -> None:
    """Make a node write a value that exists already, or one without a sensible name."""
    node = pick_node(model, random)
    if node.output:
        node.output[random.randrange(len(node.output))] = random.choice(ODD_NAMES)


def drop_node(model: ModelProto, random: Random) -> None:
    """Remove a node that others need."""
    nodes = pick_graph(model, random).node
    if nodes:
        del nodes[random.randrange(len(nodes))]


def repeat_node(model: ModelProto, random: Random) -> None:
    """Have one node twice: two producers of one value."""
    pick_graph(model, random).node.append(pick_node(model, random))


def shuffle_nodes(model: ModelProto, random: Random) -> None:
    """Lose the topological order."""
    graph = pick_graph(model, random)
    nodes = random.sample(list(graph.node), len(graph.node))
    del graph.node[:]
    graph.node.extend(nodes)


def change_operator(model: ModelProto, random: Random) -> None:
    """Give a node another operator."""
    pick_node(model, random).op_type = random.choice((*OPERATORS, *ODD_NAMES))


def change_domain(model: ModelProto, random: Random) -> None:
    """Give a node another domain."""
    pick_node(model, random).domain = random.choice(
        ("com.microsoft", "no.such.domain", "local", "ai.onnx.ml", *ODD_NAMES)
    )


def change_inputs(model: ModelProto, random: Random) -> None:
    """Give a node too many inputs, or too few."""
    node = pick_node(model, random)
    if random.random() < 0.5:
        node.input.extend([random.choice(ODD_NAMES)] * random.choice((1, 3, 2000)))
    elif node.input:
        del node.input[random.randrange(len(node.input)) :]


def change_attribute(model: ModelProto, random: Random) -> None:
    """Change the numbers, the type or the presence of an attribute."""
    nodes = [node for node in all_nodes(model) if node.attribute] or [pick_node(model, random)]
    node = random.choice(nodes)
    if not node.attribute:
        node.attribute.append(helper.make_attribute("axis", random.choice(ODD_INTEGERS)))
        return
    index = random.randrange(len(node.attribute))
    attribute = node.attribute[index]
    match random.randrange(6):
        case 0:
            del node.attribute[index]
        case 1:
            attribute.type = random.choice([*AttributeProto.AttributeType.values()])
        case 2:
            attribute.i = random.choice(ODD_INTEGERS)
            attribute.ints.extend(random.choices(ODD_INTEGERS, k=2))
        case 3 if attribute.ints:
            attribute.ints[random.randrange(len(attribute.ints))] = random.choice(ODD_INTEGERS)
        case 4:
            node.attribute.append(attribute)
        case _:
            attribute.name = random.choice(("axis", "perm", "to", "value", *ODD_NAMES))


def refer_to_attribute(model: ModelProto, random: Random) -> None:
    """Refer to a function's attribute from where there is none."""
    attribute = pick_node(model, random).attribute.add(name="axis", type=AttributeProto.INT)
    attribute.ref_attr_name = random.choice(ODD_NAMES)


def change_tensor_type(model: ModelProto, random: Random) -> None:
    """Say that a weight's bytes are of another type, maybe one that does not exist."""
    pick_tensor(model, random).data_type = random.choice((*range(30), 99, -1, 2**31 - 1))


def change_tensor_shape(model: ModelProto, random: Random) -> None:
    """Say that a weight has another shape than its bytes."""
    dims = pick_tensor(model, random).dims
    match random.randrange(3):
        case 0 if dims:
            dims[random.randrange(len(dims))] = random.choice(ODD_INTEGERS)
        case 1:
            dims.append(random.choice(ODD_INTEGERS))
        case _:
            del dims[:]


def change_tensor_data(model: ModelProto, random: Random) -> None:
    """Cut, extend or double a weight's data."""
    tensor = pick_tensor(model, random)
    match random.randrange(4):
        case 0:
            tensor.raw_data = tensor.raw_data[: random.randrange(len(tensor.raw_data) + 1)]
        case 1:
            tensor.raw_data += random.randbytes(random.choice((1, 4, 400)))
        case 2:
            tensor.float_data.extend([1.0, float("nan"), float("inf")])
        case _:
            tensor.string_data.append(random.randbytes(5))


def rename_tensor(model: ModelProto, random: Random) -> None:
    """Name a weight like something else, or have it twice."""
    if random.random() < 0.5:
        pick_tensor(model, random).name = random.choice(ODD_NAMES)
    else:
        model.graph.initializer.append(pick_tensor(model, random))


def externalize(model: ModelProto, random: Random) -> None:
    """Point a weight at a file that is missing, elsewhere, or shorter than it says."""
    tensor = pick_tensor(model, random)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=random.choice(LOCATIONS))
    for key in ("offset", "length"):
        if random.random() < 0.5:
            tensor.external_data.add(key=key, value=random.choice(("0", "-1", "5", "nan", "", str(2**63), str(2**70))))


def sparsify(model: ModelProto, random: Random) -> None:
    """Add a sparse weight whose parts do not fit."""
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(pick_tensor(model, random))
    sparse.dims.extend(random.choices(ODD_INTEGERS, k=random.randrange(3)))


def change_value_shape(model: ModelProto, random: Random) -> None:
    """Say that a value has another shape."""
    dims = pick_value(model, random).type.tensor_type.shape.dim
    match random.randrange(4):
        case 0:
            dims.add(dim_value=random.choice(ODD_INTEGERS))
        case 1 if dims:
            del dims[random.randrange(len(dims))]
        case 2 if dims:
            dims[random.randrange(len(dims))].dim_param = random.choice(ODD_NAMES)
        case _ if dims:
            dims[random.randrange(len(dims))].dim_value = random.choice(ODD_INTEGERS)


def change_value_type(model: ModelProto, random: Random) -> None:
    """Say that a value is of another type, or of none."""
    value = pick_value(model, random)
    match random.randrange(4):
        case 0:
            value.ClearField("type")
        case 1:
            value.type.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT
        case 2:
            value.type.optional_type.elem_type.tensor_type.elem_type = random.randrange(20)
        case _:
            value.type.tensor_type.elem_type = random.choice((*range(27), 99, -1))


def change_values(model: ModelProto, random: Random) -> None:
    """Rename, repeat or remove an input or output of a graph."""
    graph = pick_graph(model, random)
    values = random.choice((graph.input, graph.output))
    if not values:
        return
    index = random.randrange(len(values))
    match random.randrange(3):
        case 0:
            values[index].name = random.choice(ODD_NAMES)
        case 1:
            values.append(values[index])
        case _:
            del values[index]


def contradict(model: ModelProto, random: Random) -> None:
    """Describe a value inside the graph wrongly."""
    node = pick_node(model, random)
    shape = random.choices(ODD_INTEGERS, k=random.randrange(4))
    name = node.output[0] if node.output else ""
    model.graph.value_info.append(helper.make_tensor_value_info(name, random.randrange(1, 17), shape))


def change_versions(model: ModelProto, random: Random) -> None:
    """Change the operator sets or the file format's version."""
    match random.randrange(4):
        case 0:
            model.ir_version = random.choice(ODD_INTEGERS)
        case 1 if model.opset_import:
            random.choice(list(model.opset_import)).version = random.choice((*range(1, 30), *ODD_INTEGERS))
        case 2:
            del model.opset_import[:]
        case _:
            model.opset_import.add(domain=random.choice(("", "ai.onnx", "local", "x")), version=random.randrange(30))


def nest(model: ModelProto, random: Random) -> None:
    """Put the graph under two branches, or nearly as many as the file format can hold."""
    if any(value.name == "nested" for value in model.graph.input):
        return
    outputs = [value.name for value in model.graph.output]
    for level in range(random.choice((2, 10, 20))):
        inner = GraphProto(name=f"level{level}")
        inner.node.extend(model.graph.node)
        inner.output.extend(model.graph.output)
        other = inner if level < 2 else GraphProto()
        outer = helper.make_node("If", ["nested"], outputs, then_branch=inner, else_branch=other)
        del model.graph.node[:]
        model.graph.node.append(outer)
    model.graph.input.append(helper.make_tensor_value_info("nested", TensorProto.BOOL, []))


def recurse(model: ModelProto, random: Random) -> None:
    """Have a function that calls itself, or one that is there twice."""
    node = pick_node(model, random)
    node.domain, node.op_type = "local", "again"
    inner = helper.make_node("again", list(node.input), list(node.output), domain="local")
    imports = [helper.make_opsetid("local", 1), helper.make_opsetid("", 17)]
    function = helper.make_function("local", "again", node.input, node.output, [inner], imports)
    model.functions.extend([function] * random.choice((1, 2)))
    model.opset_import.append(imports[0])


def describe(model: ModelProto, random: Random) -> None:
    """Add metadata that is there twice, and a training graph."""
    model.metadata_props.extend([onnx.StringStringEntryProto(key=random.choice(ODD_NAMES), value="x")] * 2)
    model.training_info.add().algorithm.CopyFrom(model.graph)


FIELD_MUTATIONS: tuple[Mutation, ...] = (
    cycle,
    rename_input,
    rename_output,
    drop_node,
    repeat_node,
    shuffle_nodes,
    change_operator,
    change_domain,
    change_inputs,
    change_attribute,
    refer_to_attribute,
    change_tensor_type,
    change_tensor_shape,
    change_tensor_data,
    rename_tensor,
    externalize,
    sparsify,
    change_value_shape,
    change_value_type,
    change_values,
    contradict,
    change_versions,
    nest,
    recurse,
    describe,
)
