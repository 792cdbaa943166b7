"""The diff of two models: how nodes are matched, and what is said of those that are."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from optimizer import ModelDiff, diff, load, optimize
from optimizer.errors import ArtifactError, InputError, ModelError
from optimizer.model_diff import NodeMatch, diff_artifact
from tests.optimizer.build import BOOL, FLOAT, model, node, perceptron, value


def only(found: ModelDiff, kind: str) -> NodeMatch:
    (match,) = found.of_kind(kind)
    return match


def labels(found: ModelDiff, match: NodeMatch) -> tuple[list[str], list[str]]:
    before, after = found.nodes(match)
    return [n.label for n in before], [n.label for n in after]


def edited(change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    proto = perceptron()
    change(proto.graph)
    return proto


def floats(numbers: Sequence[float]) -> np.ndarray:
    return np.array(numbers, dtype=np.float32)


def test_the_function_stays_a_function() -> None:
    import optimizer.model_diff

    assert callable(optimizer.diff)
    assert optimizer.diff is diff


def test_a_model_and_itself() -> None:
    found = diff(perceptron(), perceptron())
    assert found.identical
    assert [match.kind for match in found.matches] == ["same"] * 4
    assert "the same nodes, attributes, weights, inputs and outputs" in str(found)
    assert found.to_dict()["same"] == [[name, name] for name in ("first", "bias", "activation", "second")]


def test_every_node_is_in_one_match() -> None:
    def change(graph: onnx.GraphProto) -> None:
        del graph.node[2]
        graph.node[2].input[0] = "h_biased"
        graph.node.append(node("Softmax", ["y"], ["p"]))

    found = diff(perceptron(), edited(change))
    assert sorted(i for match in found.matches for i in match.before) == [0, 1, 2, 3]
    assert sorted(i for match in found.matches for i in match.after) == [0, 1, 2, 3]


def test_removed_and_rewired() -> None:
    def change(graph: onnx.GraphProto) -> None:
        del graph.node[2]
        graph.node[2].input[0] = "h_biased"

    found = diff(perceptron(), edited(change))
    assert labels(found, only(found, "removed")) == (["activation"], [])
    rewired = only(found, "rewired")
    assert labels(found, rewired) == (["second"], ["second"])
    assert [str(change) for change in rewired.changes] == ["input 0: Relu activation -> Add bias"]
    assert (found.count("same"), found.identical) == (2, False)


def test_added() -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.node.insert(3, node("Tanh", ["h_active"], ["h_tanh"], name="squash"))
        graph.node[4].input[0] = "h_tanh"

    found = diff(perceptron(), edited(change))
    assert labels(found, only(found, "added")) == ([], ["squash"])


def test_changed_attributes_and_types() -> None:
    def build(axis: int, size: int) -> onnx.ModelProto:
        nodes = [node("Softmax", ["x"], ["y"], axis=axis)]
        return model(nodes, [value("x", [2, size])], [value("y", [2, size])])

    found = diff(build(0, 3), build(1, 4))
    assert [str(change) for change in only(found, "changed").changes] == [
        "attribute axis: 0 -> 1",
        "type y: float32[2, 3] -> float32[2, 4]",
    ]
    assert [str(change) for change in found.interface] == [
        "input 'x': float32[2, 3] -> float32[2, 4]",
        "output 'y': float32[2, 3] -> float32[2, 4]",
    ]


def test_an_attribute_that_is_left_out_has_its_default() -> None:
    def build(opset: int = 23, **attributes: int) -> onnx.ModelProto:
        nodes = [node("Softmax", ["x"], ["y"], **attributes)]
        return model(nodes, [value("x", [2, 3])], [value("y", [2, 3])], opset=opset)

    assert diff(build(), build(axis=-1)).identical
    found = diff(build(), build(axis=0))
    assert [str(change) for change in only(found, "changed").changes] == ["attribute axis: -1 -> 0"]
    older = diff(build(opset=11), build())
    assert "attribute axis: 1 -> -1" in [str(change) for change in only(older, "changed").changes]


def test_an_attribute_that_comes_without_a_default() -> None:
    def build(**attributes: list[int]) -> onnx.ModelProto:
        nodes = [node("Transpose", ["x"], ["y"], **attributes)]
        return model(nodes, [value("x", [2, 3])], [value("y", [3, 2])])

    found = diff(build(), build(perm=[1, 0]))
    assert [str(change) for change in only(found, "changed").changes] == ["attribute perm: none -> [1, 0]"]


def test_a_changed_weight_says_by_how_much() -> None:
    def change(graph: onnx.GraphProto) -> None:
        array = numpy_helper.to_array(graph.initializer[0]).copy()
        array[3, 5] += 0.25
        array[4, 4] -= 0.125
        graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w1"))

    found = diff(perceptron(), edited(change))
    (weight,) = found.weights
    assert (weight.kind, weight.before) == ("changed", "w1")
    assert weight.max_difference == pytest.approx(0.25, rel=1e-5)
    assert only(found, "changed").changes[0].what == "weight"


def test_weights_of_another_shape_name_and_number() -> None:
    def change(graph: onnx.GraphProto) -> None:
        array = numpy_helper.to_array(graph.initializer[0]).T.copy()
        graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w1"))
        graph.initializer[1].name = graph.node[1].input[1] = "bias_of_first"
        graph.initializer.append(numpy_helper.from_array(floats([1, 2]), "unused"))

    found = diff(perceptron(), edited(change))
    assert {(w.kind, w.before, w.after) for w in found.weights} == {
        ("reshaped", "w1", "w1"),
        ("renamed", "b1", "bias_of_first"),
        ("added", "", "unused"),
    }
    assert found.weights[0].type_after == "float32[64, 32]"
    assert found.count("changed") == 1, "another name is no change"


def test_weights_that_were_merged_or_removed() -> None:
    array = np.random.default_rng(0).standard_normal(300).astype(np.float32)
    weights = {"a": array, "b": array.copy(), "c": floats([5])}
    nodes = [node("Add", ["x", "a"], ["m"]), node("Mul", ["m", "b"], ["n"]), node("Sub", ["n", "c"], ["y"])]
    before = model(nodes, [value("x", [300])], [value("y", [300])], weights)
    nodes[1] = node("Mul", ["m", "a"], ["n"])
    nodes[2] = node("Relu", ["n"], ["y"])
    after = model(nodes, [value("x", [300])], [value("y", [300])], {"a": array})
    found = diff(before, after)
    assert {(w.kind, w.before, w.after) for w in found.weights} == {("merged", "b", "a"), ("removed", "c", "")}
    assert labels(found, only(found, "replaced")) == (["Sub_y"], ["Relu_y"])
    assert "1 weights were merged" in str(found)


def test_a_node_that_reads_another_weight_that_was_there_before() -> None:
    rng = np.random.default_rng(1)
    weights = {name: rng.standard_normal(300).astype(np.float32) for name in "ab"}
    nodes = [node("Add", ["x", "a"], ["m"]), node("Mul", ["m", "b"], ["y"])]
    before = model(nodes, [value("x", [300])], [value("y", [300])], weights)
    nodes[1] = node("Mul", ["m", "a"], ["y"])
    after = model(nodes, [value("x", [300])], [value("y", [300])], weights)
    assert [change.name for change in only(diff(before, after), "changed").changes] == ["b"]


def test_a_constant_node_is_a_weight() -> None:
    numbers = np.random.default_rng(0).standard_normal(4).astype(np.float32)

    def build(as_node: bool, scale: float = 1) -> onnx.ModelProto:
        nodes = [node("Mul", ["x", "w"], ["y"], name="scale")]
        if as_node:
            nodes.insert(0, node("Constant", [], ["w"], value=numpy_helper.from_array(numbers * scale), name="c"))
        weights = {} if as_node else {"w": numbers}
        return model(nodes, [value("x", [4])], [value("y", [4])], weights)

    found = diff(build(True), build(False))
    assert found.identical
    assert (len(found.before.nodes), found.before.constants, found.after.constants) == (1, 1, 0)
    (change,) = diff(build(True, scale=2), build(False)).weights
    assert change.max_difference == pytest.approx(float(np.abs(numbers).max()))


def test_a_constant_that_is_an_output_stays_a_node() -> None:
    nodes = [node("Constant", [], ["y"], value_float=2.5, name="c")]
    given = model(nodes, [], [value("y", [])])
    assert [each.op for each in diff(given, given).before.nodes] == ["Constant"]


def test_a_type_that_is_known_better_is_no_change() -> None:
    def build(middle: list[int | str | None] | None) -> onnx.ModelProto:
        nodes = [node("Relu", ["x"], ["m"]), node("Tanh", ["m"], ["y"])]
        proto = model(nodes, [value("x", ["n", 4])], [value("y", ["n", 4])])
        if middle is not None:
            proto.graph.value_info.append(value("m", middle))
        return proto

    unknown: list[list[int | str | None] | None] = [None, ["n", 4], ["k", None], [3, 4]]
    for middle in unknown:
        assert diff(build(middle), build(["n", 4])).identical
    (match,) = diff(build(["n", 5]), build(["n", 4])).of_kind("changed")
    assert [change.what for change in match.changes] == ["type"]
    assert diff(build(["n", 4, 1]), build(["n", 4])).count("changed") == 1


def test_nan_in_a_weight() -> None:
    def build(*numbers: float) -> onnx.ModelProto:
        weights = {"w": floats(numbers)}
        return model([node("Add", ["x", "w"], ["y"])], [value("x", [2])], [value("y", [2])], weights)

    assert diff(build(np.nan, 1), build(np.nan, 1)).identical
    (change,) = diff(build(np.nan, 1), build(np.nan, 3)).weights
    assert change.max_difference == 2
    (change,) = diff(build(np.nan, 1), build(0, 1)).weights
    assert change.max_difference == np.inf
    assert change.to_dict()["max_difference"] is None, "JSON has no infinity"


# --- Matching without provenance ---


def scrambled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with other names inside."""
    renamed = copy.deepcopy(proto)
    kept = {v.name for v in (*renamed.graph.input, *renamed.graph.output)} | {w.name for w in renamed.graph.initializer}
    for number, each in enumerate(renamed.graph.node):
        each.name = f"node{number}"
        for names in (each.input, each.output):
            for i, name in enumerate(names):
                names[i] = name if name in kept or not name else f"v_{name}"
    return renamed


def chain(*ops: str, repeats: int = 1) -> onnx.ModelProto:
    nodes, last = [], "x"
    for number, op in enumerate(ops * repeats):
        nodes.append(node(op, [last], [f"t{number}"]))
        last = f"t{number}"
    nodes.append(node("Identity", [last], ["y"]))
    return model(nodes, [value("x", [4])], [value("y", [4])])


@pytest.mark.parametrize("build", [perceptron, lambda: chain("Relu", "Tanh", "Abs", repeats=12)])
def test_structure_matches_what_has_other_names(build: Callable[[], onnx.ModelProto]) -> None:
    found = diff(build(), scrambled(build()))
    assert {match.kind for match in found.matches} == {"same"}
    assert all(match.before == match.after for match in found.matches)
    assert "structure" in {match.by for match in found.matches}


def test_structure_finds_the_inserted_layer() -> None:
    found = diff(chain("Relu", "Tanh", "Abs"), scrambled(chain("Relu", "Tanh", "Exp", "Abs")))
    before, after = labels(found, only(found, "added"))
    assert (before, after) == ([], ["node2"])
    assert found.count("removed") == 0


def test_structure_groups_what_was_fused() -> None:
    """As another optimizer leaves it: the value that comes out keeps its name, and nothing says where it is from."""

    def build(fused: bool) -> onnx.ModelProto:
        weights = {"s": floats([1.41421356]), "one": floats([1]), "half": floats([0.5])}
        unfused = [
            node("Div", ["a", "s"], ["b"]),
            node("Erf", ["b"], ["c"]),
            node("Add", ["c", "one"], ["d"]),
            node("Mul", ["a", "d"], ["e"]),
            node("Mul", ["e", "half"], ["f"]),
        ]
        middle = [node("Gelu", ["a"], ["f"], name="fused")] if fused else unfused
        nodes = [node("Relu", ["x"], ["a"]), *middle, node("Tanh", ["f"], ["y"])]
        return model(nodes, [value("x", [4])], [value("y", [4])], {} if fused else weights)

    found = diff(build(False), build(True))
    match = only(found, "fused")
    assert labels(found, match) == (["Div_b", "Erf_c", "Add_d", "Mul_e", "Mul_f"], ["fused"])
    assert match.by == "structure"
    assert "Div + Erf + Add + 2 Mul -> Gelu" in str(found)
    back = diff(build(True), build(False))
    assert (labels(back, only(back, "split"))[0], back.count("fused")) == (["fused"], 0)


def test_what_onnx_runtime_made_of_a_model(tmp_path: Path) -> None:
    """No provenance, other names, operators of its own."""
    import onnxruntime

    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {"w": (8, 8), "b": (8,)}.items()}
    weights |= {"s": floats([1.4142135]), "one": floats([1]), "half": floats([0.5])}
    nodes = [
        node("MatMul", ["x", "w"], ["p"]),
        node("Add", ["p", "b"], ["a"]),
        node("Div", ["a", "s"], ["d"]),
        node("Erf", ["d"], ["e"]),
        node("Add", ["e", "one"], ["f"]),
        node("Mul", ["a", "f"], ["g"]),
        node("Mul", ["g", "half"], ["h"]),
        node("Softmax", ["h"], ["y"]),
    ]
    before = model(nodes, [value("x", [4, 8])], [value("y", [4, 8])], weights, opset=17)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "after.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(before.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = diff(before, tmp_path / "after.onnx")
    assert labels(found, only(found, "same"))[0] == ["Softmax_y"]
    groups = list(found.of_kind("fused", "rewritten"))
    assert {label for match in groups for label in labels(found, match)[0]} == {n.name for n in nodes[:-1]}
    assert found.count("removed") == found.count("added") == 0


# --- Provenance ---


def test_compiled_diff_follows_provenance() -> None:
    found = optimize(conv_bn(), "onnx", progress=False).diff()
    match = only(found, "fused")
    assert labels(found, match)[0] == ["conv", "bn"]
    assert (match.by, match.passes) == ("provenance", ("fold-batch-norm",))
    assert "Conv + BatchNormalization -> Conv [fold-batch-norm]" in str(found)
    assert found.before.title == "original"
    assert {w.kind for w in found.weights} >= {"removed"}


def test_a_removed_node_names_the_pass_that_removed_it(tmp_path: Path) -> None:
    weights = {"table": np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)}
    nodes = [
        node("Relu", ["table"], ["positive"], name="constant_relu"),
        node("Add", ["x", "positive"], ["y"], name="sum"),
        node("Exp", ["x"], ["unused"], name="unused_exp"),
    ]
    compiled = optimize(
        model(nodes, [value("x", [4, 4])], [value("y", [4, 4])], weights),
        "onnx",
        passes="fold-constants,remove-unused",
        progress=False,
    )
    expected = {"constant_relu": ("fold-constants",), "unused_exp": ("remove-unused",)}
    compiled.save(tmp_path / "model.tersor")
    for found in (compiled.diff(), load(tmp_path / "model.tersor").diff()):
        removed = {labels(found, match)[0][0]: match.passes for match in found.of_kind("removed")}
        assert removed == expected
    assert "1 Relu [fold-constants]: constant_relu" in str(found)


def test_provenance_is_not_needed_to_be_right() -> None:
    """A node that says it stands for one that does not exist is not lost."""
    compiled = optimize(conv_bn(), "onnx", progress=False)
    graph = compiled.graph.clone()
    for each in graph.graph:
        each.metadata_props["tersor.from"] = '["nowhere"]'
    found = diff(conv_bn(), graph)
    assert sorted(i for match in found.matches for i in match.after) == list(range(graph.graph.num_nodes()))


def conv_bn() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "scale": (4,), "shift": (4,), "mean": (4,), "var": (4,)}
    weights = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"], name="bn"),
        node("Relu", ["n"], ["y"], name="relu"),
    ]
    return model(nodes, [value("x", [1, 3, 8, 8])], [value("y", [1, 4, 8, 8])], weights)


def test_a_saved_model_knows_its_original(tmp_path: Path) -> None:
    compiled = optimize(conv_bn(), "onnx", progress=False)
    path = tmp_path / "model.tersor"
    compiled.save(path)
    fresh, loaded, read = compiled.diff(), load(path).diff(), diff_artifact(path)
    for found in (loaded, read):
        assert [(m.kind, m.before, m.after, m.passes) for m in found.matches] == [
            (m.kind, m.before, m.after, m.passes) for m in fresh.matches
        ]
        assert [(w.kind, w.before, w.after) for w in found.weights] == [
            (w.kind, w.before, w.after) for w in fresh.weights
        ]


def test_a_model_saved_without_its_graph_has_no_diff(tmp_path: Path) -> None:
    path = tmp_path / "model.tersor"
    optimize(perceptron(), "onnx", progress=False).save(path, graph=False)
    with pytest.raises(ArtifactError, match="saved without its original graph: save it with graph=True"):
        load(path).diff()


# --- Subgraphs and functions ---


def with_branches(then_op: str) -> onnx.ModelProto:
    def branch(name: str, op: str) -> onnx.GraphProto:
        return helper.make_graph([node(op, ["x"], [f"{name}_y"], name="inner")], name, [], [value(f"{name}_y", [4])])

    choose = helper.make_node(
        "If", ["c"], ["y"], name="choose", then_branch=branch("yes", then_op), else_branch=branch("no", "Neg")
    )
    return model([choose], [value("c", [], BOOL), value("x", [4])], [value("y", [4])])


def test_subgraphs_are_compared() -> None:
    found = diff(with_branches("Relu"), with_branches("Tanh"))
    match = only(found, "replaced")
    before, after = found.nodes(match)
    assert (before[0].op, after[0].op) == ("Relu", "Tanh")
    assert before[0].graph == "choose.then_branch"
    assert before[0].scope == ("choose.then_branch",)
    assert found.count("same") == 2, "the If itself and the other branch"


def test_functions_are_compared() -> None:
    def build(op: str) -> onnx.ModelProto:
        body = helper.make_function(
            "own", "Twice", ["a"], ["b"], [node("Relu", ["a"], ["m"]), node(op, ["m"], ["b"])],
            [helper.make_opsetid("", 23)],
        )  # fmt: skip
        nodes = [helper.make_node("Twice", ["x"], ["y"], domain="own", name="call")]
        return model(nodes, [value("x", [4])], [value("y", [4])], domains={"own": 1}, functions=[body])

    found = diff(build("Tanh"), build("Exp"))
    assert found.count("same") == 2
    before, _ = found.nodes(only(found, "replaced"))
    assert before[0].graph == "function own::Twice"


# --- The way in and out ---


def test_of_anything(tmp_path: Path) -> None:
    proto = perceptron()
    onnx.save(proto, tmp_path / "model.onnx")
    compiled = optimize(proto, "onnx", progress=False)
    compiled.save(tmp_path / "model.tersor")
    for other in (tmp_path / "model.onnx", str(tmp_path / "model.onnx"), ir.from_proto(proto)):
        assert diff(proto, other).identical
    assert diff(compiled, tmp_path / "model.tersor").identical
    with pytest.raises(InputError, match=r"after must be the path of .* not int"):
        diff(proto, 3)


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"\x08\x07garbage")
    with pytest.raises(ModelError):
        diff(tmp_path / "no.onnx", perceptron())
    with pytest.raises(ModelError, match="cannot read"):
        diff(tmp_path / "missing.onnx", perceptron())
    cyclic = model([node("Relu", ["b"], ["a"]), node("Relu", ["a"], ["b"])], [], [value("b", [1])])
    with pytest.raises(ModelError, match="cycle"):
        diff(cyclic, perceptron())


def test_operators_that_nobody_knows_are_compared_all_the_same() -> None:
    nodes = [helper.make_node("Mystery", ["x"], ["y"], domain="custom", name="m", depth=3)]
    unknown = model(nodes, [value("x", [4])], [value("y", [4])], domains={"custom": 1})
    assert diff(unknown, unknown).identical


def test_json_round_trip(tmp_path: Path) -> None:
    found = diff(perceptron(), perceptron(hidden=128))
    found.save(tmp_path / "diff.json")
    data = json.loads((tmp_path / "diff.json").read_text())
    assert data == found.to_dict()
    assert data["summary"]["changed"] == 3
    assert data["before"]["operators"] == {"MatMul": 2, "Add": 1, "Relu": 1}
    with pytest.raises(InputError, match=r"is saved as .*, not as 'diff.txt'"):
        found.save("diff.txt")


def test_nodes_that_changed_alike_share_a_line() -> None:
    def build(with_abs: bool) -> onnx.ModelProto:
        nodes, last = [], "x"
        for i in range(4):
            for op in ("Relu", "Abs", "Tanh") if with_abs or i == 3 else ("Relu", "Tanh"):
                nodes.append(node(op, [last], [f"{op}{i}"]))
                last = f"{op}{i}"
        return model(nodes, [value("x", [3])], [value("Tanh3", [3])])

    text = str(diff(build(True), build(False)))
    assert "3 times Tanh: input 0: Abs -> Relu, e.g. Tanh_Tanh0" in text
    assert "3 Abs: Abs_Abs0, Abs_Abs1, Abs_Abs2" in text


def test_long_lists_are_cut() -> None:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": rng.standard_normal(3).astype(np.float32) for i in range(30)}
    other = {name: array + 1 for name, array in weights.items()}
    nodes = [node("Add", [f"t{i}" if i else "x", f"w{i}"], [f"t{i + 1}"]) for i in range(30)]
    before, after = (model(nodes, [value("x", [3], FLOAT)], [value("t30", [3])], each) for each in (weights, other))
    assert "and 10 more" in str(diff(before, after))
