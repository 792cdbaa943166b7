"""What a model does to the runtime that it is compared with stays in the process of that runtime."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer import optimize, reference_process
from optimizer.errors import ExecutionError, VerificationError
from optimizer.frontends import load_model
from optimizer.reference import Oracle, run_reference
from optimizer.reference_process import PROCESS
from optimizer.shared_weights import SharedWeights
from tests.optimizer.build import model, node, perceptron, value

ENDLESS = """<ir_version: 10, opset_import: ["" : 23]> g (float[2] x, int64 n) => (float[2] y) <bool go = {1}> {
    y = Loop(n, go, x) <body = b (int64 i, bool on, float[2] a) => (bool off, float[2] c) {
        off = Identity(on) c = Neg(a) }> }"""


def child() -> int:
    PROCESS.start()
    assert PROCESS._child is not None
    return PROCESS._child.pid


def test_a_crash_is_an_error_that_names_the_remedy_and_the_next_run_works() -> None:
    pid = child()
    os.kill(pid, signal.SIGSTOP)  # so that the answer cannot come first
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(VerificationError, match=r"signal 9.*verify=\"off\""):
        optimize(perceptron(), "onnx", progress=False)
    assert optimize(perceptron(), "onnx", progress=False).report.verification.error is not None


def test_a_run_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = ir.from_onnx_text(ENDLESS)
    x = np.array([1, -2], np.float32)
    assert run_reference(loop, [x, np.array(3)])[0].tolist() == [-1, 2]
    monkeypatch.setattr(reference_process, "_LEAST_SECONDS", 1.0)
    with pytest.raises(VerificationError, match="it took too long"):
        run_reference(loop, [x, np.array(2**62)])


def test_a_failing_run_is_no_crash() -> None:
    before = child()
    with pytest.raises(ExecutionError):
        run_reference(load_model(perceptron()), [np.ones((2, 5), np.float32)])
    assert child() == before


def test_weights_in_a_file_are_mapped_and_others_copied_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((512, 256), dtype=np.float32)
    proto = model([node("MatMul", ["x", "w"], ["y"])], [value("x", [3, 512])], [value("y", [3, 256])])
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    in_memory = load_model(proto)
    other = onnx.ModelProto.FromString(proto.SerializeToString())
    onnx.save(other, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    in_file = load_model(tmp_path / "m.onnx")
    with SharedWeights() as shared:
        (held,) = in_memory.graph.initializers.values()
        (filed,) = in_file.graph.initializers.values()
        assert held.const_value is not None
        assert filed.const_value is not None
        place = shared.locate(held.const_value)
        assert shared.locate(held.const_value) is place
        assert Path(shared.locate(filed.const_value).path).name == "w.bin"
        for tensor in (held.const_value, filed.const_value):
            np.testing.assert_array_equal(shared.locate(tensor).map(), weight)
    x = rng.standard_normal((3, 512), dtype=np.float32)
    for loaded in (in_file, in_memory):
        np.testing.assert_allclose(run_reference(loaded, [x])[0], x @ weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.int8, np.bool_])
def test_every_type_of_array_comes_back(dtype: type) -> None:
    element = int(ir.DataType.from_numpy(np.dtype(dtype)))
    proto = model([node("Identity", ["x"], ["y"])], [value("x", [4], element)], [value("y", [4], element)])
    oracle = Oracle(load_model(proto), seed=0)
    assert oracle.outputs[0].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(oracle.outputs[0], oracle.inputs[0])


def test_a_model_without_a_reference_is_loaded_there_first() -> None:
    """What cannot be compared can still crash the runtime that it goes to."""
    proto = model([node("RandomNormalLike", ["x"], ["y"])], [value("x", [4])], [value("y", [4])])
    assert optimize(proto, "onnx", progress=False).report.verification.error is None
    pid = child()
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(VerificationError, match="signal 9"):
        optimize(proto, "onnx", progress=False)
