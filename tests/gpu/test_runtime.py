"""Running on a device: sizes that grow, errors of a run, times, saved models, fallback partitions."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import get_backend
from backends.gpu import memory as memory_module
from backends.opencl import device as device_module
from backends.opencl.device import open_device
from optimizer import load, optimize
from optimizer.errors import ArtifactError, ExecutionError, TargetError, UnsupportedError
from tests.backends.running import distance, oracle, parse
from tests.gpu.running import NET, RANDOM, check, compiled, rows


def test_the_arena_grows_and_is_kept() -> None:
    executable = check(NET, [rows(2)], [rows(500)], [rows(3)], [rows(500)])
    memory = executable.memory
    assert memory is not None and memory.arena >= 500 * 16 * 4


def test_inputs_and_results_are_the_callers() -> None:
    model = parse("g (float[4] x) => (float[4] x2, float[4] y) { x2 = Identity(x) y = Neg(x) }")
    executable, x = compiled(model), np.arange(4, dtype=np.float32)
    first = executable.run([x], 1)
    first[0][:], first[1][:] = 9, 9
    second = executable.run([x], 1)
    assert x.tolist() == second[0].tolist() == [0, 1, 2, 3] and second[1].tolist() == [0, -1, -2, -3]


def test_an_index_out_of_range_is_an_error_and_the_next_run_is_not() -> None:
    model = parse("g (float[5,3] x, int64[n] i) => (float[n,3] y) { y = Gather(x, i) }")
    executable, x = compiled(model), RANDOM.normal(size=(5, 3)).astype(np.float32)
    with pytest.raises(ExecutionError, match="an index is out of range"):
        executable.run([x, np.array([1, 5])], 1)
    assert np.array_equal(executable.run([x, np.array([1, -1])], 1)[0], x[[1, -1]])


def test_sizes_that_do_not_fit_are_an_error() -> None:
    model = parse("g (float[n,3] x, float[m,3] z) => (float[n,3] y) { y = Add(x, z) }")
    with pytest.raises(ExecutionError, match="are not the same"):
        compiled(model).run([rows(4)[:, :3].copy(), rows(5)[:, :3].copy()], 1)


def test_times_are_of_kernels_and_name_their_nodes() -> None:
    kernels = compiled(NET).profile([rows(64)], 1, 3)
    assert {node for kernel in kernels for node in kernel.nodes} >= {"node", "node_1", "node_2"}
    assert all(kernel.seconds > 0 and kernel.calls == 1 for kernel in kernels)


def test_a_partition_runs_in_onnx_runtime_between_routines() -> None:
    model = parse(
        "g (float[n,16] x) => (float[n,16] y) { a = Exp(x) b = Det3(a) y = Neg(b) }".replace(
            "Det3", "Bernoulli<seed=1.0>"
        )
    )
    with pytest.raises(UnsupportedError, match="Bernoulli"):
        compiled(model)
    executable = compiled(model, "onnxruntime")
    assert "Bernoulli" in executable.notes[0]
    found = executable.run([np.zeros((3, 16), np.float32)], 1)[0]
    assert found.shape == (3, 16) and set(np.unique(found)) <= {-1.0, 0.0}


def test_an_estimate_says_what_is_assumed_of_the_device() -> None:
    text = "g (float[8,16] x) => (float[8,16] y) { h = Exp(x) y = Softmax(h) }"
    (note,) = compiled(parse(text)).notes
    assert note.startswith("estimate, not a measurement: ") and "1 TFLOP/s and 100 GB/s, which is assumed" in note
    assert list(compiled(parse(text.replace("8,16", "n,16"))).notes) == []


def test_a_saved_model_runs_without_tvm(tmp_path: Path) -> None:
    file, x = tmp_path / "net.tersor", rows(7)
    model = optimize(NET, "opencl", fallback="error", progress=False)
    model.save(file)
    np.save(tmp_path / "x.npy", x)
    code = f"""
import sys
sys.modules["tvm"] = sys.modules["tvm_ffi"] = None
import numpy as np
from optimizer import load
y, z = load({str(file)!r})(np.load({str(tmp_path / "x.npy")!r}))
np.savez({str(tmp_path / "out.npz")!r}, y, z)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    saved = np.load(tmp_path / "out.npz")
    for ours, theirs in zip(saved.values(), oracle(NET, [x]), strict=True):
        assert distance(ours, theirs) <= 1e-5
    assert load(file).target == "opencl"


def test_a_plan_survives_json_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    executable = compiled(NET)
    manifest: dict[str, object] = executable.manifest()
    parts: dict[str, Any] = dict(executable.parts())
    files: dict[str, Any] = {"weights.bin": parts["weights.bin"], "kernels.cl": tmp_path / "kernels.cl"}
    files["kernels.cl"].write_bytes(parts["kernels.cl"])
    x = rows(3)
    again = get_backend("opencl").load(files, manifest)
    assert all(map(np.array_equal, again.run([x], 1), executable.run([x], 1)))
    for missing in ("plan", "program", "device"):
        damaged = {key: value for key, value in manifest.items() if key != missing}
        with pytest.raises(ArtifactError, match="does not describe a plan for OpenCL"):
            get_backend("opencl").load(files, damaged)
    with pytest.raises(ArtifactError, match=r"kernels\.cl"):
        get_backend("opencl").load({"weights.bin": parts["weights.bin"]}, manifest)


def test_scratch_is_counted_before_a_run() -> None:
    model = parse(
        "g (float[64,96] x) => (float[64,96] y) { s = ReduceSum<keepdims=1>(x, first) e = Exp(s) y = Div(x, e) }",
        {"first": np.array([0])},
    )
    memory = compiled(model).memory
    assert memory is not None and memory.scratch + memory.arena >= 96 * 4


def test_devices_are_chosen_by_number_and_name() -> None:
    first = open_device()
    assert open_device("0").handle == first.handle
    assert open_device(first.name[:5].upper()).handle == first.handle
    with pytest.raises(TargetError, match="no OpenCL device 'nobody'; there are 0: "):
        open_device("nobody")


@pytest.mark.without_device
def test_a_missing_binding_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(TargetError, match=r"needs pyopencl .*pip install 'tersor\[opencl\]'"):
        device_module.devices()


def test_a_missing_platform_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module.pyopencl(), "get_platforms", lambda: [])
    with pytest.raises(TargetError, match="no OpenCL device; install a driver"):
        device_module.devices()


def test_a_model_for_no_device_is_compiled_and_refuses_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> list[object]:
        raise TargetError("no OpenCL device")

    monkeypatch.setattr(device_module, "devices", none)
    monkeypatch.setattr(device_module, "_opened", {})
    model = optimize(NET, "opencl", progress=False)
    assert model.report.verification.error is None
    with pytest.raises(TargetError, match="no OpenCL device"):
        model(rows(2))


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("shared_bytes", 1 << 40, "local memory"),
        ("threads", 1 << 20, "work-groups of at most"),
        ("extensions", ["cl_none"], "lacks cl_none"),
    ],
)
def test_what_a_device_lacks_is_named(field: str, value: object, text: str) -> None:
    executable = compiled(NET)
    setattr(executable._program, field, value)  # type: ignore[attr-defined]
    with pytest.raises(TargetError, match=text):
        executable.run([rows(2)], 1)


def test_a_device_without_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse("g (float[n,16] x) => (float[n,16] y) { y = Exp(x) }")
    executable = compiled(model)
    executable.run([rows(2)], 1)
    real = memory_module.Growing.reserve
    monkeypatch.setattr(memory_module.Growing, "reserve", lambda self, nbytes: real(self, nbytes << 50))
    with pytest.raises(ExecutionError, match="in one buffer"):
        executable.run([rows(3000)], 1)
