"""CUDA graphs: what comes again with the same sizes is started as one command; by a driver that checks its calls."""

from __future__ import annotations

import ctypes
import gc

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from backends import get_backend
from backends.cuda.calls import Calls, CudaError
from optimizer.errors import ExecutionError
from optimizer.executable import Executable
from optimizer.target import Target
from tests.backends.running import distance, oracle, parse
from tests.gpu.host_cuda import host_gpu, library

pytestmark = pytest.mark.without_device
RANDOM = np.random.default_rng(0)
CHAIN = parse(
    "g (float[n,16] x) => (float[n,8] y) { h = MatMul(x, w) s = Softmax(h) m = MatMul(s, v) y = Softmax(m) }",
    {"w": RANDOM.normal(size=(16, 24)).astype(np.float32), "v": RANDOM.normal(size=(24, 8)).astype(np.float32)},
)
KERNELS = 4
LOOKUP = parse(
    """g (float[n,16] x, int64[k] i) => (float[k,16] y)
    { h = Softmax(x) s = Gather(h, i) t = Softmax<axis=0>(s) y = Softmax(t) }"""
)


def compiled(model: onnx.ModelProto) -> Executable:
    graph = ShapeInferencePass()(ir.from_proto(model)).model
    return get_backend("cuda").compile(graph, Target.parse("cuda:sm_80"), fallback="error")


def agrees(executable: Executable, model: onnx.ModelProto, inputs: list[np.ndarray]) -> None:
    for ours, theirs in zip(executable.run(inputs, 1), oracle(model, inputs), strict=True):
        assert distance(ours, theirs) <= 1e-6


def rows(count: int) -> np.ndarray:
    return RANDOM.normal(size=(count, 16)).astype(np.float32)


def counts(driver: ctypes.CDLL) -> tuple[int, int]:
    """Functions that were started or recorded, and graphs that were started."""
    return driver.host_calls(b"launch"), driver.host_calls(b"graph")


def test_the_second_run_records_and_every_later_one_starts_a_graph() -> None:
    with host_gpu() as driver:
        executable = compiled(CHAIN)
        found = []
        for _ in range(4):
            agrees(executable, CHAIN, [rows(5)])  # each with other numbers
            found.append(counts(driver))
        assert found == [(KERNELS, 0), (2 * KERNELS, 1), (2 * KERNELS, 2), (2 * KERNELS, 3)]
        assert list(executable.notes) == []


def test_other_sizes_are_another_graph() -> None:
    with host_gpu() as driver:
        executable = compiled(CHAIN)
        for count in (5, 5, 5, 700, 700, 5, 9, 5, 5):  # the longer ones need larger buffers
            agrees(executable, CHAIN, [rows(count)])
        assert counts(driver)[1] == 2 + 1 + 1
        assert driver.host_graphs() == 1


def test_graphs_and_memory_are_given_back() -> None:
    with host_gpu() as driver:
        executable = compiled(CHAIN)
        for _ in range(3):
            executable.run([rows(5)], 1)
        assert driver.host_graphs() == 1
        del executable
        gc.collect()
        assert driver.host_graphs() == driver.host_allocations() == 0


def test_what_the_host_looks_at_lies_between_graphs() -> None:
    x = rows(6)
    with host_gpu() as driver:
        executable = compiled(LOOKUP)
        for _ in range(3):
            agrees(executable, LOOKUP, [x, RANDOM.integers(-6, 6, 4)])
        assert counts(driver)[1] > 0
        with pytest.raises(ExecutionError, match="an index is out of range"):
            executable.run([x, np.array([0, 1, 2, 6])], 1)
        agrees(executable, LOOKUP, [x, np.array([0, 1, 2, 5])])


def test_profiling_starts_functions_one_by_one() -> None:
    with host_gpu() as driver:
        executable = compiled(CHAIN)
        for _ in range(3):
            executable.run([rows(5)], 1)
        before = counts(driver)
        taken = executable.profile([rows(5)], 1, 2)
        assert sum(row.calls for row in taken) == KERNELS
        assert counts(driver) == (before[0] + 2 * KERNELS, before[1] + 1)
        agrees(executable, CHAIN, [rows(5)])


@pytest.mark.parametrize(
    ("step", "name"),
    [(1, "cuStreamBeginCapture_v2"), (2, "cuLaunchKernel"), (4, "cuStreamEndCapture"), (8, "cuGraphInstantiate")],
)
def test_where_recording_fails_functions_are_started_one_by_one(
    step: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOST_GPU_FAIL", str(step))
    with host_gpu() as driver:
        executable = compiled(CHAIN)
        for _ in range(4):
            agrees(executable, CHAIN, [rows(5)])
        assert counts(driver)[1] == driver.host_graphs() == 0
        assert driver.host_calls(b"begin") == 1  # not tried again
        (note,) = executable.notes
        assert note.startswith(f"kernels are started one by one, as the device 'a processor' records none: {name}")


def test_an_older_driver_has_no_graphs() -> None:
    class Older:
        """The library without what came with CUDA 11.4."""

        def __init__(self) -> None:
            self._whole = ctypes.CDLL(str(library()))

        def __getitem__(self, name: str) -> object:
            return self._whole[name]

        def __getattr__(self, name: str) -> object:
            if name == "cuGraphInstantiateWithFlags":
                raise AttributeError(name)
            return getattr(self._whole, name)

    calls = Calls(Older())  # type: ignore[arg-type]
    with pytest.raises(CudaError, match=r"no cuGraphInstantiateWithFlags; it is older than CUDA 11\.4"):
        calls("cuGraphInstantiateWithFlags", None, None, 0)
