"""The fingerprint sees what changes a computation and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from optimizer.ir.fingerprint import describe, fingerprint
from optimizer.ir.tensors import concatenated, content_hash, same_content

TEXT = """
<ir_version: 10, opset_import: ["" : 23, "local" : 1]>
main (float[N,3] x, bool c) => (float[N,3] y)
<float[3] w = {1,2,3}, float[3] unused = {4,5,6}>
{
    a = Add(x, w)
    z = If (c) <
        then_branch = t () => (float[N,3] o) { o = Relu(a) },
        else_branch = e () => (float[N,3] p) { p = Neg(a) }
    >
    s = Softmax <axis = -1> (z)
    y = local.twice (s)
}
<domain: "local", opset_import: ["" : 23]>
twice (u) => (v) { v = Add(u, u) }
"""


def model() -> ir.Model:
    return ir.from_onnx_text(TEXT)


def node(of: ir.Model, op_type: str) -> ir.Node:
    return next(node for node in of.graph.all_nodes() if node.op_type == op_type)


def set_axis(m: ir.Model) -> None:
    node(m, "Softmax").attributes["axis"] = ir.AttrInt64("axis", 0)


def swap_branches(m: ir.Model) -> None:
    attributes = node(m, "If").attributes
    then, other = attributes["then_branch"].as_graph(), attributes["else_branch"].as_graph()
    attributes["then_branch"] = ir.AttrGraph("then_branch", other)
    attributes["else_branch"] = ir.AttrGraph("else_branch", then)


def change_weight(m: ir.Model) -> None:
    m.graph.initializers["w"].const_value = ir.tensor(np.array([1, 2, 4], np.float32))


def negate_a_zero(m: ir.Model) -> None:
    m.graph.initializers["unused"].const_value = ir.tensor(np.array([4, 5, -6], np.float32))


def drop_unused(m: ir.Model) -> None:
    del m.graph.initializers["unused"]


def rename_output(m: ir.Model) -> None:
    m.graph.outputs[0].name = "renamed"


def retype_inside(m: ir.Model) -> None:
    node(m, "Add").outputs[0].shape = ir.Shape(["N", 3])


def change_function(m: ir.Model) -> None:
    function = m.functions["local", "twice", ""]
    function[0].op_type = "Mul"


def change_in_branch(m: ir.Model) -> None:
    node(m, "Neg").op_type = "Abs"


def change_opset(m: ir.Model) -> None:
    m.opset_imports[""] = 24


@pytest.mark.parametrize(
    "change",
    [
        set_axis,
        swap_branches,
        change_weight,
        negate_a_zero,
        drop_unused,
        rename_output,
        retype_inside,
        change_function,
        change_in_branch,
        change_opset,
    ],
)
def test_sees_a_change(change: Callable[[ir.Model], None]) -> None:
    changed = model()
    change(changed)
    assert fingerprint(changed) != fingerprint(model())


def test_does_not_see_names_metadata_or_the_order_of_initializers() -> None:
    other = model()
    node(other, "Add").outputs[0].name = "another"
    node(other, "Add").name = "node_name"
    node(other, "Softmax").metadata_props["key"] = "value"
    node(other, "Softmax").doc_string = "words"
    first = other.graph.initializers.pop("w")
    other.graph.initializers.add(first)
    assert fingerprint(other) == fingerprint(model())


def test_types_can_be_left_out() -> None:
    other = model()
    retype_inside(other)
    assert list(describe(other, types=False)) == list(describe(model(), types=False))


def test_one_initializer_used_twice_differs_from_two_equal_ones() -> None:
    def sums(second: str) -> ir.Model:
        return ir.from_onnx_text(f"""
            <ir_version: 10, opset_import: ["" : 23]>
            g (float[3] x) => (float[3] y) <float[3] a = {{1,2,3}}, float[3] b = {{1,2,3}}>
            {{ z = Add(x, a) y = Add(z, {second}) w = Neg(b) }}""")

    assert fingerprint(sums("a")) != fingerprint(sums("b"))


def test_content_is_compared_by_bits() -> None:
    zero, minus = ir.tensor(np.array([0.0], np.float32)), ir.tensor(np.array([-0.0], np.float32))
    nan = ir.tensor(np.array([np.nan], np.float32))
    assert not same_content(zero, minus)
    assert same_content(nan, ir.tensor(np.array([np.nan], np.float32)))
    assert not same_content(zero, ir.tensor(np.array([[0.0]], np.float32)))
    assert not same_content(zero, ir.tensor(np.array([0], np.int32)))


def test_strings_do_not_run_into_each_other() -> None:
    first, second = (ir.StringTensor([a, b], shape=ir.Shape([2])) for a, b in [(b"ab", b"c"), (b"a", b"bc")])
    assert content_hash(first) != content_hash(second)


def test_large_tensors_are_hashed_once() -> None:
    calls = []

    def load() -> ir.TensorProtocol:
        calls.append(1)
        return ir.Tensor(np.zeros(100_000, np.float32))

    lazy = ir.LazyTensor(load, dtype=ir.DataType.FLOAT, shape=ir.Shape([100_000]))
    assert content_hash(lazy) == content_hash(lazy)
    assert len(calls) == 1


def test_four_bit_tensors_are_hashed() -> None:
    packed = ir.PackedTensor(np.array([0x21], np.uint8), ir.DataType.INT4, shape=[2])
    other = ir.PackedTensor(np.array([0x31], np.uint8), ir.DataType.INT4, shape=[2])
    assert content_hash(packed) != content_hash(other)


def test_concatenated_tensors_are_put_together_when_they_are_read() -> None:
    left, right = (ir.tensor(np.arange(n * 2, dtype=np.float32).reshape(2, n)) for n in (1, 3))
    joined = concatenated([left, right], axis=1)
    assert tuple(joined.shape.numpy()) == (2, 4)
    np.testing.assert_array_equal(joined.numpy(), np.concatenate([left.numpy(), right.numpy()], axis=1))
    assert same_content(joined, ir.tensor(joined.numpy()))
    assert joined.numpy() is not joined.numpy()
