"""A profile names, for each kernel, the nodes of the graph that it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backends.relax.executable import load_executable
from optimizer.executable import Part
from tests.backends.emitted import normal
from tests.backends.running import Array, compiled, parse


def nodes_of_kernels(body: str, weights: dict[str, Array], inputs: list[Array], fallback: str = "error") -> set[str]:
    """The nodes of each kernel of a run, joined by plus signs; TVM's own that computes sizes belongs to none."""
    profile = compiled(parse(body, weights), fallback=fallback).profile(inputs, 1, 1)
    return {"+".join(kernel.nodes) for kernel in profile if kernel.name != "shape_func"}


def test_element_wise_tails_belong_to_the_kernel_that_they_are_fused_into() -> None:
    body = (
        "g (float[1,3,9,9] x) => (float[1,4,9,9] y) { [conv] c = Conv<pads=[1,1,1,1]>(x, w, b) [relu] r = Relu(c)"
        " [second] d = Conv<pads=[1,1,1,1]>(r, v) [scale] m = Mul(d, s) [gate] g = Sigmoid(m) [sum] y = Add(g, r) }"
    )
    weights = {"w": normal(4, 3, 3, 3), "b": normal(4), "v": normal(4, 4, 3, 3), "s": np.array(0.3, np.float32)}
    found = nodes_of_kernels(body, weights, [normal(1, 3, 9, 9)])
    assert {"conv+relu", "second+scale+gate+sum"} <= found
    assert found - {"conv+relu", "second+scale+gate+sum"} <= {"conv", "sum"}  # from and to ONNX's order of axes


def test_a_kernel_that_several_groups_share_names_the_nodes_of_all() -> None:
    body = (
        "g (float[5,8] x) => (float[5,8] y) { [first] a = MatMul(x, w) [first_tail] b = Tanh(a)"
        " [second] c = MatMul(b, v) [second_tail] y = Tanh(c) }"
    )
    found = nodes_of_kernels(body, {"w": normal(8, 8), "v": normal(8, 8)}, [normal(5, 8)])
    assert found == {"first+first_tail+second+second_tail"}


def test_kernels_over_symbolic_sizes_and_with_several_results() -> None:
    body = (
        "g (float[n,9] x) => (float[n,3] y, int64[n,3] i) { [exp] e = Exp(x) [top] t, i = TopK(e, k) [neg] y = Neg(t) }"
    )
    assert nodes_of_kernels(body, {"k": np.array([3])}, [normal(4, 9)]) == {"exp", "top", "neg"}


def test_a_fallback_partition_names_its_nodes() -> None:
    body = "g (float[4] x) => (int64[1,k] y) { [exp] e = Exp(x) [find] y = NonZero(e) }"
    assert nodes_of_kernels(body, {}, [normal(4)], "onnxruntime") == {"exp", "find"}


def test_the_names_survive_saving(tmp_path: Path) -> None:
    executable = compiled(parse("g (float[4] x) => (float[4] y) { [a] t = Exp(x) [b] y = Neg(t) }"))
    loaded = load_executable("cpu", _written(executable.parts(), tmp_path), executable.manifest())
    assert [kernel.nodes for kernel in loaded.profile([normal(4)], 1, 1)] == [("a", "b")]


def _written(parts: dict[str, Part], folder: Path) -> dict[str, Path]:
    for name, part in parts.items():
        data = part.read_bytes() if isinstance(part, Path) else bytes(part)
        (folder / name).write_bytes(data)
    return {name: folder / name for name in parts}
