"""A compiled model as it is used: called, profiled, from several threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from optimizer import CompiledModel, TensorSpec, optimize
from optimizer.errors import ExecutionError, InputError
from optimizer.executable import KernelTime
from optimizer.frontends import load_model
from optimizer.ir.figures import Costs
from optimizer.model_diff import read_side
from optimizer.report import Report
from tests.optimizer.build import model, node, perceptron, perceptron_output, value

X = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return optimize(perceptron(), "onnx", progress=False)


def test_the_signature(compiled: CompiledModel) -> None:
    assert compiled.inputs == (TensorSpec("x", "float32", ("batch", 32)),)
    assert compiled.outputs == (TensorSpec("y", "float32", ("batch", 8)),)
    assert repr(compiled) == "CompiledModel(x: float32[batch, 32] -> y: float32[batch, 8]; target 'onnx')"


def test_numpy_in_numpy_out_and_torch_in_torch_out(compiled: CompiledModel) -> None:
    expected = perceptron_output(X)
    for result in (compiled(X), compiled(x=X), compiled({"x": X})):
        assert isinstance(result, np.ndarray)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    tensor = torch.from_numpy(X)
    for result in (compiled(tensor), compiled(x=tensor), compiled({"x": tensor})):
        assert isinstance(result, torch.Tensor)
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_several_outputs_are_a_tuple() -> None:
    nodes = [node("Relu", ["x"], ["a"]), node("Neg", ["x"], ["b"])]
    two = optimize(model(nodes, [value("x", [2])], [value("a", [2]), value("b", [2])]), "onnx", progress=False)
    a, b = two(np.array([1, -1], np.float32))
    assert (a.tolist(), b.tolist()) == ([1, 0], [-1, 1])


def test_inputs_are_not_changed(compiled: CompiledModel) -> None:
    before = X.copy()
    compiled(X)
    np.testing.assert_array_equal(X, before)


def test_num_threads(compiled: CompiledModel) -> None:
    compiled.num_threads = 2
    expected = compiled(X)
    compiled.num_threads = 1
    np.testing.assert_allclose(compiled(X), expected, rtol=1e-5)
    for wrong in (0, -1, 1.5, True, "2"):
        with pytest.raises(InputError, match="num_threads must be a positive integer, not"):
            compiled.num_threads = wrong  # type: ignore[assignment]
    assert compiled.num_threads == 1


def test_the_graph_is_standard_onnx(compiled: CompiledModel, tmp_path: Path) -> None:
    assert isinstance(compiled.graph, ir.Model)
    assert compiled.graph.opset_imports == {"": 23}
    compiled.save_onnx(tmp_path / "model.onnx")
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_profile_names_kernels_and_nodes(compiled: CompiledModel) -> None:
    profile = compiled.profile(X, repeats=3)
    assert {name for kernel in profile.kernels for name in kernel.nodes} >= {"second"}
    shares = [profile.share(kernel) for kernel in profile.kernels]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert str(profile).startswith("One run: ")
    assert "second" in str(profile)
    assert compiled.report.profile is profile
    assert profile.to_dict()["seconds"] == profile.seconds
    with pytest.raises(InputError, match="repeats must be at least 1, not 0"):
        compiled.profile(X, repeats=0)
    with pytest.raises(InputError, match="missing input"):
        compiled.profile()


def test_inputs_that_do_not_go_together_are_one_clear_error() -> None:
    nodes = [node("MatMul", ["a", "b"], ["y"])]
    compiled = optimize(
        model(nodes, [value("a", ["m", "k"]), value("b", ["l", "n"])], [value("y", None)]), "onnx", progress=False
    )
    with pytest.raises(ExecutionError, match="ONNX Runtime failed while running"):
        compiled(np.ones((2, 3), np.float32), np.ones((4, 5), np.float32))
    assert compiled(np.ones((2, 3), np.float32), np.ones((3, 5), np.float32)).shape == (2, 5)


class Slow:
    """An executable that notices when it is run twice at a time."""

    backend = "slow"

    def __init__(self) -> None:
        self.inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "float32", (1,)),)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "float32", (1,)),)
        self.notes: list[str] = []
        self.running = 0
        self.overlapped = False
        self.pause = threading.Event()

    @property
    def memory(self) -> None:
        return None

    def run(self, inputs: Sequence[Any], num_threads: int) -> list[Any]:
        self.running += 1
        self.overlapped |= self.running > 1
        self.pause.wait(0.01)
        self.running -= 1
        return [inputs[0] * num_threads]

    def profile(self, inputs: Sequence[Any], num_threads: int, repeats: int) -> list[KernelTime]:
        return []

    def parts(self) -> dict[str, Any]:
        return {}

    def manifest(self) -> dict[str, object]:
        return {}


class Failing(Slow):
    """An executable whose runtime fails."""

    def run(self, inputs: Sequence[Any], num_threads: int) -> list[Any]:
        raise IndexError("axis 7\nand more")


def wrap(executable: Slow) -> CompiledModel:
    costs = Costs(1, 1, 1, 1, 1, False)
    report = Report("slow", "float32", costs, costs)
    return CompiledModel(
        executable,
        graph=lambda: load_model(perceptron()),
        original=lambda: read_side(load_model(perceptron()), "original"),
        report=report,
        target="slow",
        num_threads=3,
    )


def test_a_failing_runtime_is_one_clear_error() -> None:
    with pytest.raises(ExecutionError, match=r"the model fails on these inputs: IndexError: axis 7$"):
        wrap(Failing())(np.ones(1, np.float32))


def test_calls_from_several_threads_run_one_after_the_other() -> None:
    slow = Slow()
    compiled = wrap(slow)
    results: list[float] = []

    def call(number: int) -> None:
        results.append(float(compiled(np.array([number], np.float32))[0]))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [3.0 * number for number in range(8)]
    assert not slow.overlapped
    assert str(compiled.profile(np.ones(1, np.float32)))
