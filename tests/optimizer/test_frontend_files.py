"""Models from files and from memory: read without copies, and refused with one clear error when they are damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimizer.errors import InputError, ModelError, UnsupportedError
from optimizer.frontends import load_model
from tests.optimizer.build import INT64, model, node, perceptron, value


def save(proto: onnx.ModelProto, folder: Path, *, external: bool = False) -> Path:
    path = folder / "model.onnx"
    if external:
        onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=64)
    else:
        onnx.save(proto, path)
    return path


def weight(loaded: ir.Model, name: str) -> np.ndarray:
    tensor = loaded.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def is_mapped(array: np.ndarray) -> bool:
    """Whether the array lies in a file: it is read-only and owns nothing."""
    return not array.flags.writeable and not array.flags.owndata


@pytest.mark.parametrize("external", [False, True])
def test_weights_of_a_file_are_mapped(tmp_path: Path, external: bool) -> None:
    proto = perceptron()
    expected = numpy_helper.to_array(proto.graph.initializer[0])
    loaded = load_model(save(proto, tmp_path, external=external))
    np.testing.assert_array_equal(weight(loaded, "w1"), expected)
    assert is_mapped(weight(loaded, "w1"))
    assert loaded.opset_imports == {"": 23}


def test_one_map_serves_all_weights_of_a_file(tmp_path: Path) -> None:
    weights = {f"w{i}": np.full((300,), i, np.float32) for i in range(64)}
    proto = model([node("Sum", list(weights), ["y"])], [], [value("y", [300])], weights)
    path = save(proto, tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    loaded = load_model(path)
    assert len(os.listdir("/proc/self/fd")) - before <= 1
    assert weight(loaded, "w63")[0] == 63


def test_weights_in_memory_are_shared() -> None:
    from_proto = load_model(perceptron())
    again = load_model(from_proto)
    assert again.graph is not from_proto.graph
    for name, kept in from_proto.graph.initializers.items():
        assert again.graph.initializers[name].const_value is kept.const_value


def test_the_callers_model_stays_as_it_is() -> None:
    proto = perceptron(opset=11)
    before = proto.SerializeToString(deterministic=True)
    load_model(proto)
    assert proto.SerializeToString(deterministic=True) == before
    owned = ir.from_proto(proto)
    load_model(owned)
    assert owned.opset_imports[""] == 11


def test_dynamic_dimensions_stay_dynamic() -> None:
    loaded = load_model(perceptron())
    assert loaded.graph.inputs[0].shape == ir.Shape(["batch", 32])


def test_a_size_of_minus_one_is_an_unknown_size() -> None:
    proto = model([node("Relu", ["x"], ["y"])], [value("x", [-1, 4])], [value("y", None)])
    shape = load_model(proto).graph.inputs[0].shape
    assert shape is not None
    assert shape == ir.Shape([None, 4])


def test_inputs_with_a_default_become_weights() -> None:
    proto = perceptron()
    proto.graph.input.append(value("w1", [32, 64]))
    loaded = load_model(proto)
    assert [x.name for x in loaded.graph.inputs] == ["x"]
    assert "w1" in loaded.graph.initializers


def test_sparse_weights_become_dense() -> None:
    proto = model([node("Add", ["x", "s"], ["y"])], [value("x", [2, 3])], [value("y", [2, 3])])
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5.0, 7.0], np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 5], np.int64), "i"))
    sparse.dims.extend([2, 3])
    before = proto.SerializeToString()
    dense = weight(load_model(proto), "s")
    np.testing.assert_array_equal(dense, [[0, 5, 0], [0, 0, 7]])
    assert proto.SerializeToString() == before


def test_nodes_are_sorted() -> None:
    proto = perceptron()
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(reversed(nodes))
    assert [n.name for n in load_model(proto).graph] == ["first", "bias", "activation", "second"]


# --- Damage: each is one ModelError that names what is wrong ---


def cyclic(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = "h_active"


def cyclic_through_a_subgraph(proto: onnx.ModelProto) -> None:
    body = helper.make_graph([node("Identity", ["y"], ["inner"])], "body", [], [value("inner", None)])
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    proto.graph.node.append(node("If", ["always"], ["h_if"], then_branch=body, else_branch=body, name="if"))
    proto.graph.node[3].input[0] = "h_if"


def undefined(proto: onnx.ModelProto) -> None:
    proto.graph.node[1].input[1] = "nowhere"


def output_of_nothing(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nothing"


def twice_defined(proto: onnx.ModelProto) -> None:
    proto.graph.node[2].output[0] = "h"


def truncated_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def negative_dimension(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = -1


def huge_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].dims[0] = 2**60


def untyped_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].data_type = 0


def unknown_type(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].data_type = 77


def wrong_operand_type(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros(64, np.int64), "b1"))


def wrong_declared_type(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.elem_type = INT64


def forbidden_type(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


def missing_input(proto: onnx.ModelProto) -> None:
    del proto.graph.node[0].input[1]


def omitted_input(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].input[0] = ""


def unknown_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("transposed", 1))


def missing_attribute(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("Cast", ["y"], ["z"]))


def wrong_attribute_type(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("Softmax", ["y"], ["z"], axis="last"))


def zero_stride(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("MaxPool", ["y"], ["z"], kernel_shape=[2], strides=[0]))


def reference_outside_a_function(proto: onnx.ModelProto) -> None:
    softmax = node("Softmax", ["y"], ["z"])
    softmax.attribute.add(name="axis", ref_attr_name="axis", type=onnx.AttributeProto.INT)
    proto.graph.node.append(softmax)


def two_default_opsets(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 11))


def impossible_version(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("somewhere", -3))


def domain_not_imported(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(node("Scaler", ["y"], ["z"], domain="ai.onnx.ml"))


def no_graph(proto: onnx.ModelProto) -> None:
    proto.ClearField("graph")


def circular_functions(proto: onnx.ModelProto) -> None:
    for name, callee in (("f", "g"), ("g", "f")):
        body = [node(callee, ["a"], ["b"], domain="local")]
        imports = [helper.make_opsetid("", 23), helper.make_opsetid("local", 1)]
        proto.functions.append(helper.make_function("local", name, ["a"], ["b"], body, imports))
    proto.opset_import.append(helper.make_opsetid("local", 1))


DAMAGE: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (cyclic, "has a cycle, among others through node 'first'"),
    (cyclic_through_a_subgraph, "has a cycle"),
    (undefined, "'bias' .Add. reads 'nowhere', which nothing produces"),
    (output_of_nothing, "output 'nothing' is produced by nothing"),
    (twice_defined, "'h'"),
    (truncated_weight, "tensor 'w1' of type FLOAT and shape .32, 64. needs 8192 bytes, the model holds 8188"),
    (negative_dimension, "'w1' has a negative dimension"),
    (huge_weight, "'w1' with shape .* has more than"),
    (untyped_weight, "'w1' has no element type"),
    (unknown_type, "77"),
    (wrong_operand_type, "'bias' .Add.: input 'B' is tensor.int64., another input of the same type is tensor.float."),
    (wrong_declared_type, "output 'y' is declared as tensor.int64., it is tensor.float."),
    (forbidden_type, "'first' .MatMul.: input 'A' cannot be tensor.string."),
    (missing_input, "'first' .MatMul. has 1 inputs, the operator takes 2 to 2"),
    (omitted_input, "'first' .MatMul. lacks its input 'A'"),
    (unknown_attribute, "'transposed', which the operator does not know"),
    (missing_attribute, "lacks its attribute 'to'"),
    (wrong_attribute_type, "attribute 'axis' is of type STRING, it must be INT"),
    (zero_stride, "attribute 'strides' must be positive"),
    (reference_outside_a_function, "'axis' refers to 'axis', which is no attribute of a function"),
    (two_default_opsets, "imports the default opset twice, as versions .11, 23."),
    (impossible_version, "version -3 of domain 'somewhere'"),
    (domain_not_imported, "domain 'ai.onnx.ml', which the model does not import"),
    (no_graph, "has no graph"),
    (circular_functions, "functions local::f, local::g call each other in a circle"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=lambda item: getattr(item, "__name__", ""))
def test_a_damaged_model_is_refused(tmp_path: Path, damage: Callable[[onnx.ModelProto], None], message: str) -> None:
    proto = perceptron()
    damage(proto)
    with pytest.raises(ModelError, match=message):
        load_model(proto)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError):
        load_model(path)


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    data = perceptron(hidden=2).SerializeToString()
    path = tmp_path / "model.onnx"
    for length in range(0, len(data) - 1, 7):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            load_model(path)


def test_a_flipped_bit_gives_a_model_or_a_model_error(tmp_path: Path) -> None:
    data = perceptron(hidden=2).SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(data), 300, replace=False).tolist():
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            load_model(path)
        except (ModelError, UnsupportedError):
            refused += 1
    assert 50 < refused < 300


def test_something_else_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" * 100)
    with pytest.raises(ModelError, match=r"truncated|damaged|no ONNX model"):
        load_model(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="is empty"):
        load_model(path)
    with pytest.raises(ModelError, match=r"cannot read the model .*No such file"):
        load_model(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match=r"cannot read the model .*directory"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="not dict"):
        load_model({})


# --- External data ---


def point_to(path: Path, location: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("location", ["../model.data", "sub/../../model.data", "..\\model.data", "C:\\model.data", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = save(perceptron(), inner, external=True)
    (inner / "model.data").rename(tmp_path / "model.data")
    point_to(path, location)
    with pytest.raises(ModelError, match="not inside the model's folder"):
        load_model(path)


def test_absolute_external_data_is_refused_even_inside_the_folder(tmp_path: Path) -> None:
    path = save(perceptron(), tmp_path, external=True)
    point_to(path, str(tmp_path / "model.data"))
    with pytest.raises(ModelError, match="not inside the model's folder"):
        load_model(path)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    path = save(perceptron(), inner, external=True)
    (inner / "model.data").rename(inner / "real.data")
    (inner / "model.data").symlink_to("real.data")
    load_model(path)
    (inner / "real.data").rename(tmp_path / "real.data")
    (inner / "model.data").unlink()
    (inner / "model.data").symlink_to(tmp_path / "real.data")
    with pytest.raises(ModelError, match="a link that leads out of the model's folder"):
        load_model(path)


def test_missing_truncated_and_misplaced_external_data_is_refused(tmp_path: Path) -> None:
    path = save(perceptron(), tmp_path, external=True)
    data = tmp_path / "model.data"
    content = data.read_bytes()
    data.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=r"the file is truncated, or not the one that belongs to the model"):
        load_model(path)
    data.unlink()
    with pytest.raises(ModelError, match=r"model.data' is missing"):
        load_model(path)
    data.mkdir()
    with pytest.raises(ModelError, match=r"model.data' is missing"):
        load_model(path)
    point_to(path, "a" * 300)
    with pytest.raises(ModelError, match="is no file name"):
        load_model(path)


def test_external_data_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    path = save(perceptron(), tmp_path, external=True)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = "4"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"needs 8192 bytes, its entry for the file 'model.data' says 4"):
        load_model(path)


def test_external_data_of_a_model_without_a_folder_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(save(perceptron(), tmp_path, external=True), load_external_data=False)
    with pytest.raises(ModelError, match=r"came without a folder: pass the path of the \.onnx file"):
        load_model(proto)


def test_external_data_of_an_ir_model_is_found_where_it_was_read(tmp_path: Path) -> None:
    path = save(perceptron(), tmp_path, external=True)
    loaded = load_model(ir.load(path))
    assert is_mapped(weight(loaded, "w1"))


def test_a_large_model_is_read_through_a_map(tmp_path: Path) -> None:
    """3 GiB of weights in a sparse file: reading them would take longer and more memory than this test has."""
    path = tmp_path / "model.onnx"
    rows, columns = 3 * 2**10, 2**18
    proto = model([node("Gather", ["w", "i"], ["y"])], [value("i", [1], INT64)], [value("y", [1, columns])])
    tensor = proto.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[rows, columns])
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in {"location": "w.data", "offset": "0", "length": str(4 * rows * columns)}.items():
        tensor.external_data.add(key=key, value=entry)
    with (tmp_path / "w.data").open("wb") as file:
        file.truncate(4 * rows * columns)
    path.write_bytes(proto.SerializeToString())
    before = resident_bytes()
    array = weight(load_model(path), "w")
    assert array.shape == (rows, columns)
    assert array[-1, -1] == 0
    assert resident_bytes() - before < 2**26


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
