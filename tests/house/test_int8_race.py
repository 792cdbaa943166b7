"""The race of quantizers: what its rows say, and that everyone's files are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.int8_models import Quantized, by_rows, variations
from benchmarks.int8_race import SECTION, Race, summary
from models.case import ModelCase
from optimizer.timing import Measurement


def _took(milliseconds: float, output: float = 1.0) -> Measurement:
    return Measurement([np.array([output], np.float32)], [[milliseconds / 1e3]] * 2)


def _race(**more: Measurement) -> Race:
    measured = {"tersor float32": _took(6), "tersor static": _took(3, 1.5), "tersor dynamic": _took(2, 1.25)}
    return Race("m", {**measured, **{name.replace("_", " "): each for name, each in more.items()}})


def test_the_faster_form_counts() -> None:
    race = _race(ONNX_Runtime_static=_took(5), ONNX_Runtime_dynamic=_took(4, 3.0), OpenVINO_NNCF=_took(8))
    assert race.over_peers == pytest.approx(2)
    assert race.over_float32 == pytest.approx(3)
    cells = dict(zip(SECTION.columns, race.cells(), strict=True))
    assert (cells["tersor static ms"], cells["OpenVINO static ms"], cells["OpenVINO NNCF ms"]) == ("3.00", "", "8.00")
    assert (cells["tersor's error"], cells["ONNX Runtime's"]) == ("2e-01", "2e+00")


def test_without_peers_there_is_no_ratio() -> None:
    assert np.isnan(_race().over_peers)


def test_the_summary() -> None:
    fast = _race(OpenVINO_static=_took(4))
    slow = Race("s", {**fast.measured, "tersor float32": _took(1), "OpenVINO static": _took(1)})
    assert summary([fast]) == "Over the best peer: 2.00 in the geometric mean; none is slower than our float32."
    assert summary([fast, slow]) == "Over the best peer: 1.00 in the geometric mean; slower than our float32: s."


def test_calibration_begins_with_the_example() -> None:
    example = [np.ones((2, 3), np.float32), np.array([1, 2])]
    first, *others = variations(example)
    assert first is example
    assert others
    for floats, integers in others:
        assert not np.array_equal(floats, example[0])
        assert np.array_equal(integers, example[1])


def test_dynamic_by_onnx_runtime(tmp_path: Path) -> None:
    """Also where the shapes of weights are noted, which that quantizer transposes."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]> g (float[2,8] x) => (float[2,4] y) <float[4,8] w> {
            y = Gemm<transB=1>(x, w) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 8), np.float32), "w"))
    del model.graph.value_info[:]
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 8]))
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    case = ModelCase("m", path, {"x": np.ones((2, 8), np.float32)})
    written = onnx.load(by_rows(Quantized(path, [np.ones((2, 8), np.float32)], path, case), tmp_path))
    assert "MatMulInteger" in {node.op_type for node in written.graph.node}
