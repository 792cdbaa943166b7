"""Which operators are read: all of ONNX's and ONNX Runtime's, and those that the model defines itself."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from optimizer.errors import UnsupportedError
from optimizer.frontends import load_model
from tests.optimizer.build import BOOL, INT64, model, node, value


def test_an_unknown_operator_is_refused_with_the_nearest_name() -> None:
    proto = model([node("Sofmax", ["x"], ["y"], name="probabilities")], [value("x", [2])], [value("y", [2])])
    with pytest.raises(UnsupportedError, match=r"'probabilities': operator 'Sofmax' does not exist .*mean 'Softmax'"):
        load_model(proto)


def test_an_operator_newer_than_the_models_opset_is_refused() -> None:
    proto = model([node("Gelu", ["x"], ["y"])], [value("x", [2])], [value("y", [2])], opset=17)
    with pytest.raises(UnsupportedError, match=r"'Gelu' does not exist in version 17 of domain 'ai.onnx'$") as caught:
        load_model(proto)
    assert caught.value.node == "Gelu_y"
    assert caught.value.reason.startswith("operator 'Gelu'")


@pytest.mark.parametrize("domain", ["my.company", "com.microsoft"])
def test_an_operator_of_an_unknown_domain_is_refused(domain: str) -> None:
    nodes = [node("Frobnicate", ["x"], ["y"], domain=domain)]
    proto = model(nodes, [value("x", [2])], [value("y", [2])], domains={domain: 1})
    with pytest.raises(UnsupportedError, match=f"'Frobnicate' of domain '{domain}' is unknown: define it"):
        load_model(proto)


def test_an_operator_that_the_model_defines_is_read() -> None:
    imports = [helper.make_opsetid("", 23)]
    body = [node("Relu", ["a"], ["b"])]
    function = helper.make_function("my.company", "Frobnicate", ["a"], ["b"], body, imports)
    nodes = [node("Frobnicate", ["x"], ["y"], domain="my.company")]
    proto = model(nodes, [value("x", [2])], [value("y", [2])], domains={"my.company": 1}, functions=[function])
    assert len(load_model(proto).functions) == 1


def test_an_operator_of_onnx_runtime_is_read() -> None:
    nodes = [node("FastGelu", ["x"], ["y"], domain="com.microsoft")]
    load_model(model(nodes, [value("x", [2])], [value("y", [2])], domains={"com.microsoft": 1}))


def body(nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> object:
    return helper.make_graph(nodes, "body", inputs, outputs)


def test_control_flow_sequences_and_recurrence_are_read() -> None:
    branch = body([node("Identity", ["x"], ["branch"])], [], [value("branch", None)])
    turn = body(
        [node("Identity", ["on"], ["still_on"]), node("Add", ["state", "state"], ["next"])],
        [value("i", [], INT64), value("on", [], BOOL), value("state", None)],
        [value("still_on", [], BOOL), value("next", None)],
    )
    step = body([node("Add", ["sum", "row"], ["total"])], [value("sum", [4]), value("row", [4])], [value("total", [4])])
    nodes = [
        node("If", ["c"], ["a"], then_branch=branch, else_branch=branch),
        node("Loop", ["", "c", "a"], ["b"], body=turn),
        node("Scan", ["zero", "b"], ["d"], body=step, num_scan_inputs=1),
        node("SequenceConstruct", ["d", "d"], ["s"]),
        node("ConcatFromSequence", ["s"], ["e"], axis=0),
        node("LSTM", ["l", "w", "r"], ["f"], hidden_size=2),
    ]
    weights = {
        "zero": np.zeros(4, np.float32),
        "w": np.zeros((1, 8, 3), np.float32),
        "r": np.zeros((1, 8, 2), np.float32),
    }
    inputs = [value("c", [], BOOL), value("x", [3, 4]), value("l", [5, 1, 3])]
    loaded = load_model(model(nodes, inputs, [value("e", None), value("f", None)], weights))
    assert [n.op_type for n in loaded.graph] == [n.op_type for n in nodes]
