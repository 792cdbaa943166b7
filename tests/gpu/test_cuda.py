"""The CUDA backend without a GPU: compiling, saving, refusing to run; running by a driver that checks its calls."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from backends import get_backend
from backends.cuda import compiler as compiler_module
from backends.cuda.driver import Image
from optimizer import load, optimize
from optimizer.errors import ArtifactError, CompileError, ExecutionError, TargetError
from optimizer.executable import Executable
from optimizer.gpus import GPUS
from optimizer.target import Target
from tests.backends.running import distance, oracle, parse
from tests.gpu.host_cuda import host_gpu
from tests.gpu.rules import nvidia
from tests.gpu.running import NET, RANDOM, rows

pytestmark = pytest.mark.without_device
GATHER = parse("g (float[5,3] x, int64[n] i) => (float[n,3] y) { y = Gather(x, i) }")


def compiled(model: onnx.ModelProto, target: str = "cuda:sm_80", fallback: str = "error") -> Executable:
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    return get_backend("cuda").compile(graph, Target.parse(target), fallback=fallback)


def test_without_a_gpu_a_model_is_compiled_saved_and_loaded_and_refuses_to_run(tmp_path: Path) -> None:
    nvidia()
    with host_gpu(count=0, compiler=False):
        model = optimize(NET, "cuda:sm_90", fallback="error", progress=False)
        assert model.target == "cuda:sm_90"
        assert "no NVIDIA GPU here" in str(model.report.verification)
        model.save(tmp_path / "net.tersor")
        again = load(tmp_path / "net.tersor")
        with pytest.raises(TargetError, match="no NVIDIA GPU here: the driver finds none"):
            again(rows(2))


def test_the_code_is_for_the_architecture() -> None:
    nvidia()
    executable = compiled(NET, "cuda:sm_86")
    parts: dict[str, Any] = dict(executable.parts())
    assert parts["kernels.cubin"].startswith(b"\x7fELF")
    assert b".target sm_86" in parts["kernels.ptx"]
    manifest: dict[str, Any] = dict(executable.manifest())
    resources = manifest["resources"]
    assert set(resources) == {"fused_matmul_add_relu_kernel", "softmax_kernel"}
    assert all(each["registers"] > 0 and each["spilled_bytes"] == 0 for each in resources.values())


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with host_gpu():
        executable = compiled(NET)
    monkeypatch.setattr("optimizer.nvidia.LIBRARY", "libnothing.so")
    with pytest.raises(TargetError, match=r"no NVIDIA GPU here: libnothing\.so"):
        executable.run([rows(2)], 1)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_module.Nvcc, "found", lambda: None)
    monkeypatch.setattr(compiler_module.Nvrtc, "found", lambda: None)
    with pytest.raises(TargetError, match=r"nvcc on the PATH or NVRTC: pip install tersor\[cuda\]"):
        compiled(NET)
    assert "not compiled here" in get_backend("cuda").describe().proof


def test_running_by_the_drivers_calls() -> None:
    with host_gpu() as driver:
        executable = compiled(NET)
        for count in (3, 100, 7):
            x = rows(count)
            for ours, theirs in zip(executable.run([x], 1), oracle(NET, [x]), strict=True):
                assert distance(ours, theirs) <= 1e-6
        assert driver.host_calls(b"load") == 1
        assert driver.host_calls(b"launch") == 6
        taken = executable.profile([rows(64)], 1, 3)
        assert {row.name: row.calls for row in taken} == {"fused_matmul_add_relu": 1, "softmax": 1}
        assert all(row.seconds > 0 for row in taken)
        assert driver.host_calls(b"destroy") == driver.host_calls(b"event") == 12
        assert driver.host_allocations() > 0
        del executable
        gc.collect()
        assert driver.host_allocations() == 0
        assert driver.host_calls(b"unload") == 1


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ("g (float[2,3,9,9] x) => (float[2,3,4,4] y) { y = MaxPool<kernel_shape=[3,3], strides=[2,2]>(x) }", 1),
        ("g (float[n,33] x, float[n,33] z) => (float[n,66] y) { a = Mul(x, z) y = Concat<axis=1>(a, x) }", 2),
        ("g (float[n,40] x) => (float[n] y) { y = ReduceMean<keepdims=0>(x, axes) }", 1),
        ("g (float[2,3,20,8] q, float[2,3,20,8] k) => (float[2,3,20,8] y) { y = Attention(q, k, k) }", 2),
    ],
)
def test_operators_by_the_drivers_calls(text: str, inputs: int) -> None:
    model = parse(text, {"axes": np.array([1])} if "axes" in text else {})
    with host_gpu():
        executable = compiled(model)
        shapes = [[s if isinstance(s, int) else 5 for s in spec.shape or ()] for spec in executable.inputs]
        given = [RANDOM.normal(size=shape).astype(np.float32) for shape in shapes]
        assert len(given) == inputs
        for ours, theirs in zip(executable.run(given, 1), oracle(model, given), strict=True):
            assert distance(ours, theirs) <= 1e-6


def test_an_index_out_of_range_is_an_error_and_the_next_run_is_not() -> None:
    x = RANDOM.normal(size=(5, 3)).astype(np.float32)
    with host_gpu():
        executable = compiled(GATHER)
        with pytest.raises(ExecutionError, match="an index is out of range"):
            executable.run([x, np.array([1, 5])], 1)
        assert np.array_equal(executable.run([x, np.array([1, -1])], 1)[0], x[[1, -1]])


def test_a_saved_model_runs_elsewhere_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    with host_gpu():
        executable, x = compiled(NET), rows(4)
        manifest: dict[str, Any] = json.loads(json.dumps(executable.manifest()))
        parts: dict[str, Any] = dict(executable.parts())
        for name in ("kernels.cubin", "kernels.ptx"):
            (tmp_path / name).write_bytes(parts[name])
            parts[name] = tmp_path / name
        again = get_backend("cuda").load(parts, manifest)
        assert all(map(np.array_equal, again.run([x], 1), executable.run([x], 1)))
        for missing in ("plan", "program", "architecture", "resources"):
            with pytest.raises(ArtifactError, match="does not describe a plan for CUDA"):
                get_backend("cuda").load(parts, {k: v for k, v in manifest.items() if k != missing})
        with pytest.raises(ArtifactError, match=r"kernels\.ptx"):
            get_backend("cuda").load({k: v for k, v in parts.items() if k != "kernels.ptx"}, manifest)


def test_a_partition_runs_in_onnx_runtime_between_routines() -> None:
    text = "g (float[n,16] x) => (float[n,16] y) { a = Exp(x) b = Bernoulli<seed=1.0>(a) y = Neg(b) }"
    with host_gpu():
        executable = compiled(parse(text), fallback="onnxruntime")
        found = executable.run([np.zeros((3, 16), np.float32)], 1)[0]
    assert found.shape == (3, 16) and set(np.unique(found)) <= {-1.0, 0.0}


def test_a_device_without_room_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with host_gpu():
        executable = compiled(parse("g (float[n,16] x) => (float[n,16] y) { y = Exp(x) }"))
        executable.run([rows(2)], 1)
        monkeypatch.setattr("backends.cuda.driver._LEAST", 1 << 40)
        with pytest.raises(ExecutionError, match=r"no room for a buffer .*out of memory"):
            executable.run([rows(3000)], 1)


def test_each_device_gets_what_it_can_run() -> None:
    image = Image("sm_86", b"cubin", b"ptx")
    assert image.best((8, 6), "a GPU") == image.best((8, 9), "a GPU") == b"cubin"
    assert image.best((9, 0), "a GPU") == image.best((12, 0), "a GPU") == b"ptx\0"  # the driver translates it
    with pytest.raises(TargetError, match=r"compiled for sm_86, a GPU has compute capability 8\.0"):
        image.best((8, 0), "a GPU")


def test_code_that_the_driver_refuses() -> None:
    with host_gpu(capability=90):
        executable = compiled(NET)  # what the host's compiler gives as PTX is none
        with pytest.raises(CompileError, match=r"'a processor' refuses the code: .*invalid image.*PTX is no code"):
            executable.run([rows(2)], 1)


@pytest.mark.parametrize(
    ("capability", "name"), [(80, "sm_80"), (86, "sm_86"), (87, "sm_86"), (89, "sm_89"), (90, "sm_90"), (120, "sm_90")]
)
def test_the_architecture_is_that_of_the_gpu(capability: int, name: str) -> None:
    with host_gpu(capability):
        target = Target.parse("cuda")
        assert target.gpu is GPUS[name] and str(target) == f"cuda:{name}"
        assert f"run here as {name}" in get_backend("cuda").describe().proof


@pytest.mark.parametrize(("count", "init"), [(0, 0), (1, 100)])
def test_the_architecture_where_there_is_no_gpu(count: int, init: int) -> None:
    with host_gpu(count=count, init=init):
        assert str(Target.parse("cuda")) == "cuda:sm_80"
        assert "no NVIDIA GPU" in get_backend("cuda").describe().proof


def test_an_older_gpu_is_refused() -> None:
    with host_gpu(75), pytest.raises(TargetError, match=r"compute capability 7\.5; .* use 'opencl'"):
        Target.parse("cuda")


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(TargetError, match=r"unknown architecture in target 'cuda:sm_81' \(did you mean 'sm_8"):
        Target.parse("cuda:sm_81")


@pytest.mark.parametrize("name", ["sm_80", "sm_86", "sm_89", "sm_90"])
def test_every_architecture_is_a_target(name: str) -> None:
    assert Target.parse(f"cuda:{name}").gpu is GPUS[name]


def test_bytes_go_to_tensor_cores() -> None:
    nvidia()
    scales: dict[str, Any] = {"one": np.array(0.5, np.float32), "zero": np.array(0, np.uint8)}
    weights = RANDOM.integers(-128, 128, (128, 64)).astype(np.int8)
    model = parse(
        """g (uint8[n,128] x) => (float[n,64] y)
        { a = DequantizeLinear(x, one, zero) b = DequantizeLinear(w, one) y = MatMul(a, b) }""",
        {"w": weights, **scales},
    )
    parts: dict[str, Any] = dict(compiled(model).parts())
    assert b"mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32" in parts["kernels.ptx"]


def test_whole_graphs_of_bytes_by_emulated_tensor_cores() -> None:
    model = parse(
        """g (float[n,3,12,12] x) => (float[n,16,12,12] y)
        { a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) d = Conv<pads=[1,1,1,1], group=16>(r, dw) y = Conv(d, p) }""",
        {
            "w": RANDOM.normal(size=(16, 3, 3, 3)).astype(np.float32) / 5,
            "b": RANDOM.normal(size=16).astype(np.float32),
            "dw": RANDOM.normal(size=(16, 1, 3, 3)).astype(np.float32) / 3,
            "p": RANDOM.normal(size=(16, 16, 1, 1)).astype(np.float32) / 4,
        },
    )
    samples = [{"x": RANDOM.normal(size=(2, 3, 12, 12)).astype(np.float32)} for _ in range(4)]
    with host_gpu():
        compiled_model = optimize(
            model,
            "cuda:sm_80",
            example_inputs=samples[0],
            precision="int8",
            calibration=samples,
            fallback="error",
            progress=False,
            cache=False,
        )
    found = compiled_model.report.verification  # of the quantized graph, which optimize() holds it against
    assert found.error is not None and found.loss is not None and found.loss < 0.1
    assert any(node.op_type == "QuantizeLinear" for node in compiled_model.graph.graph)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_16_bits_by_emulated_tensor_cores(precision: str) -> None:
    model = parse(
        "g (float[n,64] x) => (float[n,32] y) { h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }",
        {
            "a": RANDOM.normal(size=(64, 128)).astype(np.float32) / 8,
            "b": RANDOM.normal(size=(128, 32)).astype(np.float32) / 11,
        },
    )
    with host_gpu():
        done = optimize(model, "cuda:sm_80", precision=precision, fallback="error", progress=False, cache=False)
    found = done.report.verification
    assert found.error is not None and found.tolerance is not None and found.error <= found.tolerance


def test_16_bits_that_come_one_by_one() -> None:
    """Images of three channels, and as many pixels and columns as no copy of four bytes can begin at."""
    model = parse(
        """g (float[n,3,9,11] x) => (float[n,7] y) {
            c = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w) r = Relu(c) f = Flatten(r) y = MatMul(f, b) }""",
        {
            "w": RANDOM.normal(size=(5, 3, 3, 3)).astype(np.float32) / 5,
            "b": RANDOM.normal(size=(150, 7)).astype(np.float32) / 12,
        },
    )
    with host_gpu():
        done = optimize(
            model, "cuda:sm_80", precision="float16", fallback="error", verify="final", progress=False, cache=False
        )
    found = done.report.verification
    assert found.error is not None and found.tolerance is not None and found.error <= found.tolerance


def test_an_estimate_is_given_where_all_sizes_are_known() -> None:
    text = "g (float[64,64] x) => (float[64,64] y) { h = MatMul(x, a) e = Softmax(h) y = MatMul(e, a) }"
    weights = {"a": RANDOM.normal(size=(64, 64)).astype(np.float32)}
    with host_gpu():
        (note,) = compiled(parse(text, weights)).notes
        assert note.startswith("estimate, not a measurement: ") and "A100" in note
        (other,) = compiled(parse(text, weights), "cuda:sm_90").notes
        assert "H100" in other
        assert list(compiled(parse(text.replace("64,64] x", "n,64] x"), weights)).notes) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_infinite_numbers_of_16_bits_compile(dtype: str) -> None:
    nvidia()
    pool = "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"
    compiled(parse(f"g ({dtype}[1,2,6,6] x) => ({dtype}[1,2,3,3] y) {{ y = {pool} }}"))
