"""The two roofs of a machine (Williams, Waterman and Patterson 2009), as they are measured, not as they are printed.

Each is the best single call of several programs that do the same: a matrix product of ONNX Runtime, OpenVINO and our
own, and a sum and a matrix-vector product of PyTorch over an array that no cache holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks import contestants
from benchmarks.contestants import OPENVINO, ORT, TERSOR
from optimizer.peaks import Peaks
from optimizer.timing import Build, Measurement, Outputs

__all__ = ["Machine", "measure"]

PRODUCT = 2048
"""Rows and columns of both matrices of the product."""
ROWS, COLUMNS = 16_384, 8_192
"""The array that is read: 512 MB in float32."""
ROUNDS = 5


@dataclass(frozen=True)
class Machine(Peaks):
    """What a machine can do at most, and who showed it.

    Attributes:
        flops_by: The program that did the most operations a second.
        bandwidth_by: The program that read the most bytes a second.
    """

    flops_by: str
    bandwidth_by: str

    def sentence(self) -> str:
        """Both roofs, for RESULTS.md."""
        return (
            f"The roofs, measured in the same run: {self.flops / 1e9:.0f} GFLOP/s (a product of matrices of {PRODUCT}, "
            f"by {self.flops_by}) and {self.bandwidth / 1e9:.0f} GB/s ({self.bandwidth_by} over 512 MB)."
        )


def measure(threads: int, rounds: int = ROUNDS, size: int = PRODUCT, rows: int = ROWS) -> Machine:
    """Find both roofs.

    Args:
        threads: Of each program.
        rounds: How often each has its turn.
        size: Rows and columns of the matrices.
        rows: Of the array that is read, which has `COLUMNS` columns.

    Raises:
        ContestantFailed: One failed beside the others that does not fail alone.
    """
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.onnx"
        onnx.save(product(random.standard_normal((size, size), np.float32)), path)
        inputs = [random.standard_normal((size, size), np.float32)]
        products: dict[str, Build] = {
            ORT: partial(contestants.onnx_runtime, path, inputs, threads),
            OPENVINO: partial(contestants.openvino, path, inputs, threads),
            TERSOR: partial(_compiled, path, inputs, threads),
        }
        if contestants.why_absent(OPENVINO, is_module=False):
            del products[OPENVINO]
        computed, _ = contestants.compete_without_failures(products, rounds)
    readers = {name: partial(_reader, name, rows, threads) for name in ("a sum", "a matrix-vector product")}
    read, _ = contestants.compete_without_failures(readers, rounds)
    flops_by, seconds = _fastest(computed)
    bandwidth_by, read_seconds = _fastest(read)
    return Machine(2 * size**3 / seconds, 4 * rows * COLUMNS / read_seconds, flops_by, bandwidth_by)


def product(weight: np.ndarray) -> onnx.ModelProto:
    """A model of one `MatMul`: X `[N, N]` times a constant `[N, N]`, float32."""
    shape = list(weight.shape)
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "product", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)


def _compiled(path: Path, inputs: list[np.ndarray], threads: int) -> Callable[[], Outputs]:
    from optimizer import optimize

    compiled = optimize(path, target="cpu", cache=False)
    compiled.num_threads = threads
    return lambda: [np.asarray(compiled(*inputs))]


def _reader(name: str, rows: int, threads: int) -> Callable[[], Outputs]:
    import torch

    torch.set_num_threads(threads)
    array, vector = torch.ones(rows, COLUMNS), torch.ones(COLUMNS)
    return lambda: [(array.sum() if name == "a sum" else array @ vector).numpy()]


def _fastest(measured: dict[str, Measurement]) -> tuple[str, float]:
    """Who had the shortest call, and its seconds."""
    shortest = {name: min(call for burst in each.bursts for call in burst) for name, each in measured.items()}
    best = min(shortest, key=lambda name: shortest[name])
    return best, shortest[best]
