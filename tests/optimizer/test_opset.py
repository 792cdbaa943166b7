"""Old operators mean the same after they were brought to the canonical opset: ONNX Runtime runs both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper

from optimizer.errors import UnsupportedError
from optimizer.frontends import load_model
from optimizer.frontends.opset import CANONICAL_OPSET, NEWEST_OPSET
from optimizer.frontends.opset.adapters import ADAPTERS
from optimizer.ort_session import OrtSession
from tests.optimizer.build import INT64, model, node, perceptron, value

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 4, 6)).astype(np.float32)
IMAGE = RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)


def run(proto: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def run_converted(proto: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[Any]:
    return OrtSession(converted(proto).SerializeToString()).run(inputs)


def converted(proto: onnx.ModelProto) -> onnx.ModelProto:
    loaded = load_model(proto)
    assert loaded.opset_imports[""] == CANONICAL_OPSET
    result = ir.to_proto(loaded)
    context = onnx.checker.C.CheckerContext()
    context.ir_version = result.ir_version
    context.opset_imports = loaded.opset_imports
    for converted_node in result.graph.node:
        if not converted_node.domain and converted_node.op_type != "If":
            onnx.checker.check_node(converted_node, context)
    return result


def one(
    op_type: str,
    opset: int,
    inputs: dict[str, np.ndarray],
    *,
    weights: dict[str, np.ndarray] | None = None,
    outputs: int = 1,
    order: Sequence[str] | None = None,
    **attributes: Any,
) -> tuple[onnx.ModelProto, list[np.ndarray]]:
    """A model of one node, and inputs for it."""
    names = [f"y{i}" for i in range(outputs)]
    nodes = [node(op_type, order or [*inputs, *(weights or {})], names, **attributes)]
    declared = [value(n, a.shape, helper.np_dtype_to_tensor_dtype(a.dtype)) for n, a in inputs.items()]
    kinds = [INT64 if op_type == "TopK" and i else onnx.TensorProto.FLOAT for i in range(outputs)]
    results = [value(n, None, kind) for n, kind in zip(names, kinds, strict=True)]
    return model(nodes, declared, results, weights, opset=opset), list(inputs.values())


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


BN = {name: np.abs(RNG.standard_normal(4)).astype(np.float32) + 0.5 for name in ("scale", "bias", "mean", "var")}
ROIS = {"rois": f32(1, 1, 6, 6).reshape(1, 4), "batch": np.zeros(1, np.int64)}
GRID = RNG.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)

CASES = {
    "BatchNormalization-7": one("BatchNormalization", 7, {"x": IMAGE}, weights=BN, spatial=1),
    "BatchNormalization-9": one("BatchNormalization", 9, {"x": IMAGE}, weights=BN, momentum=0.8),
    "Clip-6": one("Clip", 10, {"x": X}, min=-0.5, max=0.5),
    "Clip-6 below": one("Clip", 7, {"x": X}, max=0.5),
    "Dropout-7": one("Dropout", 9, {"x": X}, ratio=0.3),
    "Dropout-10": one("Dropout", 11, {"x": X}, ratio=0.3),
    "GridSample-16 bicubic": one("GridSample", 16, {"x": IMAGE, "grid": GRID}, mode="bicubic"),
    "GridSample-16": one("GridSample", 19, {"x": IMAGE, "grid": GRID}),
    "Hardmax-11": one("Hardmax", 12, {"x": X}),
    "LogSoftmax-1": one("LogSoftmax", 8, {"x": X}, axis=2),
    "Pad-2": one("Pad", 10, {"x": X}, pads=[0, 1, 2, 0, 0, 1], value=1.5),
    "Pad-2 reflect": one("Pad", 7, {"x": X}, pads=[0, 1, 2, 0, 0, 1], mode="reflect"),
    "ReduceMean-13": one("ReduceMean", 17, {"x": X}, axes=[0, 2], keepdims=0),
    "ReduceMax-11": one("ReduceMax", 11, {"x": X}, axes=[-1]),
    "ReduceL2-1 all": one("ReduceL2", 10, {"x": X}),
    "ReduceSum-11": one("ReduceSum", 12, {"x": X}, axes=[1], keepdims=1),
    "Resize-10": one("Resize", 10, {"x": IMAGE}, weights={"s": f32(1, 1, 2, 2)}, mode="nearest"),
    "Resize-10 linear": one("Resize", 10, {"x": IMAGE}, weights={"s": f32(1, 1, 1.5, 2)}, mode="linear"),
    "Resize-10 shrink": one("Resize", 10, {"x": IMAGE}, weights={"s": f32(1, 1, 0.6, 0.6)}, mode="nearest"),
    "Resize-11 sizes": one(
        "Resize",
        11,
        {"x": IMAGE},
        weights={"roi": f32(), "scales": f32(), "sizes": np.array([1, 4, 5, 12], np.int64)},
        mode="linear",
    ),
    "Resize-11 tf": one(
        "Resize",
        11,
        {"x": IMAGE},
        weights={"roi": f32(), "scales": f32(1, 1, 0.7, 1.6)},
        coordinate_transformation_mode="tf_half_pixel_for_nn",
        nearest_mode="floor",
    ),
    "RoiAlign-10": one("RoiAlign", 15, {"x": IMAGE, **ROIS}, output_height=2, output_width=2, sampling_ratio=2),
    "Scatter-9": one(
        "Scatter", 10, {"x": X[0]}, weights={"i": np.array([[1, 0, 2]], np.int64), "u": f32(7, 8, 9).reshape(1, 3)}
    ),
    "Slice-1": one("Slice", 9, {"x": X}, starts=[1, -3], ends=[4, 100], axes=[1, 2]),
    "Slice-1 no axes": one("Slice", 7, {"x": X}, starts=[0, 1], ends=[1, 3]),
    "Softmax-1": one("Softmax", 7, {"x": X}),
    "Softmax-11 negative": one("Softmax", 11, {"x": X}, axis=-2),
    "Softmax-11 first": one("Softmax", 12, {"x": X}, axis=0),
    "Split-2": one("Split", 12, {"x": X}, axis=2, split=[1, 2, 3], outputs=3),
    "Split-2 equal": one("Split", 7, {"x": X}, axis=1, outputs=2),
    "Split-13 equal": one("Split", 17, {"x": X}, axis=2, outputs=3),
    "Squeeze-1": one("Squeeze", 12, {"x": X[:1]}, axes=[0]),
    "Squeeze-1 all": one("Squeeze", 10, {"x": X[:1]}),
    "TopK-1": one("TopK", 9, {"x": X}, k=3, axis=-1, outputs=2),
    "Unsqueeze-1": one("Unsqueeze", 12, {"x": X}, axes=[0, 4]),
    "Upsample-7": one("Upsample", 7, {"x": IMAGE}, scales=[1.0, 1.0, 2.0, 3.0]),
    "Upsample-9": one("Upsample", 9, {"x": IMAGE}, weights={"s": f32(1, 1, 2, 2)}, mode="linear"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_old_operator_means_the_same(case: str) -> None:
    proto, inputs = CASES[case]
    before, after = run(proto, inputs), run_converted(proto, inputs)
    for expected, actual in zip(before, after, strict=True):
        assert np.size(expected)
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_softmax_without_a_known_shape_means_the_same() -> None:
    proto, inputs = CASES["Softmax-1"]
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    del proto.graph.input[0].type.tensor_type.shape.dim[:]
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    np.testing.assert_allclose(run_converted(proto, inputs)[0], run(proto, inputs)[0], rtol=1e-6)


def test_dft_17_means_the_same() -> None:
    """ONNX Runtime's own DFT-17 and -20 are compared: the default axis changed in between."""
    signal = RNG.standard_normal((1, 6, 1)).astype(np.float32)
    proto, inputs = one("DFT", 17, {"x": signal})
    np.testing.assert_allclose(run_converted(proto, inputs)[0], run(proto, inputs)[0], rtol=1e-5, atol=1e-6)


def test_group_normalization_18_means_the_same() -> None:
    """ONNX Runtime never had that version (it is deprecated): computed by hand."""
    scale, bias = f32(2, 3), f32(-1, 1)
    proto, inputs = one("GroupNormalization", 18, {"x": IMAGE}, weights={"s": scale, "b": bias}, num_groups=2)
    groups = IMAGE.reshape(1, 2, -1)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    expected = (normal * scale[:, None] + bias[:, None]).reshape(IMAGE.shape)
    np.testing.assert_allclose(run_converted(proto, inputs)[0], expected, rtol=1e-4, atol=1e-5)


def test_scan_8_means_the_same() -> None:
    step = helper.make_graph(
        [node("Add", ["sum", "row"], ["total"]), node("Identity", ["total"], ["seen"])],
        "step",
        [value("sum", [2]), value("row", [2])],
        [value("total", [2]), value("seen", [2])],
    )
    nodes = [node("Scan", ["", "start", "x"], ["y", "z"], body=step, num_scan_inputs=1, directions=[1])]
    inputs = [value("start", [3, 2]), value("x", [3, 5, 2])]
    proto = model(nodes, inputs, [value("y", None), value("z", None)], opset=8)
    arrays = [RNG.standard_normal((3, 2)).astype(np.float32), RNG.standard_normal((3, 5, 2)).astype(np.float32)]
    for expected, actual in zip(run(proto, arrays), run_converted(proto, arrays), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_every_adapter_has_a_case() -> None:
    by_hand = {"DFT", "GroupNormalization", "Scan"}
    covered = {case.split("-")[0] for case in CASES} | by_hand
    reductions = {name for name in ADAPTERS if name.startswith("Reduce")}
    assert reductions >= {"ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum"}
    assert ADAPTERS.keys() - reductions <= covered


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (one("BatchNormalization", 7, {"x": IMAGE}, weights=BN, spatial=0)[0], "spatial=0"),
        (one("BatchNormalization", 9, {"x": IMAGE}, weights=BN, outputs=5)[0], "its outputs for training are used"),
        (one("Dropout", 7, {"x": X}, outputs=2)[0], "its mask is used"),
        (
            one(
                "Resize",
                11,
                {"x": IMAGE},
                weights={"roi": f32(), "scales": f32(1, 1, 2, 2)},
                coordinate_transformation_mode="tf_half_pixel_for_nn",
            )[0],
            "'tf_half_pixel_for_nn' without nearest_mode='floor' has no equal",
        ),
    ],
    ids=["spatial", "training", "mask", "tf"],
)
def test_what_has_no_equal_is_refused(proto: onnx.ModelProto, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        load_model(proto)


def test_nodes_inside_subgraphs_and_functions_are_converted() -> None:
    squeeze = node("Squeeze", ["x"], ["s"], axes=[0])
    branch = helper.make_graph([squeeze], "branch", [], [value("s", None)])
    function = helper.make_function(
        "local", "Unsqueezed", ["a"], ["b"], [node("Unsqueeze", ["a"], ["b"])], [helper.make_opsetid("", 11)], ["axes"]
    )
    function.node[0].attribute.add(name="axes", ref_attr_name="axes", type=onnx.AttributeProto.INTS)
    nodes = [
        node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        node("Unsqueezed", ["x"], ["z"], domain="local", axes=[1]),
    ]
    proto = model(
        nodes,
        [value("c", [], onnx.TensorProto.BOOL), value("x", [1, 4])],
        [value("y", None), value("z", None)],
        opset=11,
        domains={"local": 1},
        functions=[function],
    )
    x = X[0, :1, :4]
    y, z = run_converted(proto, [np.array(True), x])
    np.testing.assert_array_equal(y, x[0])
    np.testing.assert_array_equal(z, x[:, None])


@pytest.mark.parametrize("opset", range(7, CANONICAL_OPSET + 1))
def test_every_opset_from_7_on_is_read(opset: int) -> None:
    assert load_model(perceptron(opset)).opset_imports == {"": CANONICAL_OPSET}


@pytest.mark.parametrize("opset", range(CANONICAL_OPSET + 1, NEWEST_OPSET + 1))
def test_newer_opsets_are_kept(opset: int) -> None:
    assert load_model(perceptron(opset)).opset_imports == {"": opset}


def test_opsets_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="uses opset 99; opsets 7 to 28 can be read"):
        load_model(perceptron(99))
    with pytest.raises(UnsupportedError, match=r"Add of opset 6 cannot be read: export the model again with opset 7"):
        load_model(one("Add", 6, {"a": X, "b": X})[0])
    not_changed_since = one("Relu", 6, {"x": X})[0]
    assert load_model(not_changed_since).opset_imports[""] == CANONICAL_OPSET


def test_no_weight_is_touched() -> None:
    proto = perceptron(opset=9)
    kept = [tensor.raw_data for tensor in proto.graph.initializer]
    loaded = load_model(proto)
    tensors = [loaded.graph.initializers[name].const_value for name in ("w1", "b1", "w2")]
    assert [tensor.tobytes() for tensor in tensors if tensor is not None] == kept
