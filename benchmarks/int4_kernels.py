"""Products with weights of 4 bits, beside ONNX Runtime's `MatMulNBits` and beside a plain read of the weights.

`MatMulNBits` with accuracy_level 4 rounds its activations to int8, in blocks. We are measured twice: with float32
activations, which nothing rounds, and with activations that the graph rounds to int8 in the same blocks. All have the
same codes and scales. One row has as many layers as no cache holds, as in a language model that writes token by token.

    python -m benchmarks.int4_kernels [--rounds N] [--write]
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.results import Section, console, versions
from optimizer import optimize
from optimizer.timing import Measurement, Outputs, compete, ratio, relative_error

__all__ = ["CASES", "Case", "measure"]

SECTION = Section(
    "Weights of 4 bits",
    (
        *("rows", "K x N", "block", "layers", "ONNX Runtime µs", "tersor µs", "over ONNX Runtime", "GB/s"),
        *("of a plain read", "with int8 µs", "over ONNX Runtime", "error", "error with int8", "error of ONNX Runtime"),
    ),
    frozenset({"K x N"}),
    "<!-- begin: written by benchmarks.int4_kernels -->",
    "<!-- end of benchmarks.int4_kernels -->",
)
THREADS = 2
_BEYOND_CACHES = 100_000_000
"""Bytes: three times what the last-level cache of the machines at hand holds."""
_PEER, _OURS, _BYTES, _READ = "ONNX Runtime", "tersor", "tersor, int8", "plain read"


@dataclass(frozen=True)
class Case:
    """A product [rows, depth] x [depth, columns], several times with other weights.

    Attributes:
        rows, depth, columns: M, K, N.
        block: weights that share a scale.
    """

    rows: int
    depth: int
    columns: int
    block: int

    @property
    def weight_bytes(self) -> int:
        """Codes and float32 scales of one layer."""
        return self.depth * self.columns // 2 + self.depth // self.block * self.columns * 4

    @property
    def layers(self) -> int:
        """How many: with few rows, as many as no cache holds."""
        return -(-_BEYOND_CACHES // self.weight_bytes) if self.rows < 16 else 1

    def weights(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Codes [K, N] from 0 to 15, of which 8 stands for 0, and scales [K / block, N]."""
        random = np.random.default_rng(0)
        shape = (self.depth // self.block, self.columns)
        return [
            (
                random.integers(0, 16, (self.depth, self.columns), np.uint8),
                random.uniform(0.01, 0.02, shape).astype(np.float32),
            )
            for _ in range(self.layers)
        ]

    def input(self) -> np.ndarray:
        """X."""
        return np.random.default_rng(1).standard_normal((self.rows, self.depth)).astype(np.float32)

    def title(self) -> list[str]:
        """The first cells of its row."""
        return [str(self.rows), f"{self.depth} x {self.columns}", str(self.block), str(self.layers)]


CASES: tuple[Case, ...] = (
    Case(1, 4096, 4096, 32),
    Case(1, 4096, 4096, 128),
    Case(1, 4096, 11008, 32),
    Case(1, 768, 3072, 32),
    Case(1, 2048, 8192, 32),
    Case(2, 4096, 4096, 32),
    Case(8, 4096, 4096, 32),
    Case(128, 4096, 4096, 32),
    Case(128, 4096, 4096, 128),
    Case(128, 768, 3072, 32),
)


def _ours(case: Case, *, rounded: bool) -> Callable[[], Outputs]:
    """As QDQ graph; `rounded`: with activations in int8, a scale for as many neighbours as weights share one."""
    weights = case.weights()
    along = f"axis=1, block_size={case.block}"
    scaling = (
        "b = Reshape(x, cut) a = Abs(b) r = ReduceMax<keepdims=0>(a, last) t = Max(r, tiny) s = Div(t, top) "
        f"q = QuantizeLinear<{along}, output_dtype=3>(x, s) f = DequantizeLinear<{along}>(q, s) "
    )
    left = "f" if rounded else "x"
    layers = (
        f"d{i} = DequantizeLinear<axis=0, block_size={case.block}>(w{i}, s{i}) y{i} = MatMul({left}, d{i})"
        for i in range(len(weights))
    )
    outputs = ", ".join(f"float[{case.rows},{case.columns}] y{i}" for i in range(len(weights)))
    body = f"g (float[{case.rows},{case.depth}] x) => ({outputs}) {{ {scaling if rounded else ''}{' '.join(layers)} }}"
    model = onnx.parser.parse_model(f'<ir_version: 11, opset_import: ["" : 23]> {body}')
    held: dict[str, np.ndarray] = {}
    if rounded:
        held = {"last": np.array([2]), "tiny": np.array(1e-9, np.float32), "top": np.array(127, np.float32)}
        held["cut"] = np.array([0, case.depth // case.block, case.block])
    for i, (codes, scales) in enumerate(weights):
        held |= {f"w{i}": (codes.astype(np.int8) - 8).astype(ml_dtypes.int4), f"s{i}": scales}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in held.items())
    compiled = optimize(model, verify="off", progress=False)
    compiled.num_threads = THREADS
    x = case.input()
    return lambda: _listed(compiled(x))


def _listed(outputs: np.ndarray | Sequence[np.ndarray]) -> Outputs:
    return [outputs] if isinstance(outputs, np.ndarray) else outputs


def _peer(case: Case) -> Callable[[], Outputs]:
    """`MatMulNBits`, whose weights lie as [N, K / block, block / 2], two codes in a byte."""
    nodes, held = [], []
    for i, (codes, scales) in enumerate(case.weights()):
        pairs = codes.T.reshape(case.columns, -1, case.block)
        held.append(onnx.numpy_helper.from_array(pairs[..., ::2] | pairs[..., 1::2] << 4, f"w{i}"))
        held.append(onnx.numpy_helper.from_array(np.ascontiguousarray(scales.T).reshape(-1), f"s{i}"))
        options: dict[str, Any] = {
            "K": case.depth,
            "N": case.columns,
            "bits": 4,
            "block_size": case.block,
            "accuracy_level": 4,
        }
        inputs = ["x", f"w{i}", f"s{i}"]
        nodes.append(onnx.helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **options))
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [case.rows, case.depth])
    outputs = [
        onnx.helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, [case.rows, case.columns])
        for i in range(len(nodes))
    ]
    versions_ = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph(nodes, "g", [x], outputs, held)
    model = onnx.helper.make_model(graph, opset_imports=versions_, ir_version=10)
    options_ = ort.SessionOptions()
    options_.intra_op_num_threads = THREADS
    session = ort.InferenceSession(model.SerializeToString(), options_, providers=["CPUExecutionProvider"])
    given = {"x": case.input()}
    return lambda: list(session.run(None, given))


def _read(case: Case) -> Callable[[], Outputs]:
    """As many bytes as the weights have; numpy finds the largest integer as fast as they come."""
    count = case.weight_bytes * case.layers // 4 // THREADS * THREADS
    parts = np.split(np.ones(count, np.int32), THREADS)
    pool = ThreadPoolExecutor(THREADS)
    return lambda: [np.array(list(pool.map(np.max, parts)))]


def _exact(case: Case) -> list[np.ndarray]:
    """The products in float64."""
    x = case.input().astype(np.float64)
    return [
        x @ ((codes.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), case.block, 0))
        for codes, scales in case.weights()[:1]
    ]


def measure(case: Case, rounds: int) -> list[str]:
    """The row of a case."""
    found = compete(
        {
            _PEER: partial(_peer, case),
            _OURS: partial(_ours, case, rounded=False),
            _BYTES: partial(_ours, case, rounded=True),
            _READ: partial(_read, case),
        },
        rounds,
    )
    exact = _exact(case)

    def micros(name: str) -> str:
        return f"{found[name].seconds / case.layers * 1e6:.0f}"

    def error(measured: Measurement) -> str:
        return f"{relative_error(measured.outputs[:1], exact):.0e}"

    few = case.rows < 16
    rate = case.weight_bytes * case.layers / found[_OURS].seconds / 1e9
    return [
        *case.title(),
        micros(_PEER),
        micros(_OURS),
        str(ratio(found[_PEER], found[_OURS])),
        f"{rate:.0f}" if few else "",
        f"{ratio(found[_READ], found[_OURS]).median:.0%}" if few else "",
        micros(_BYTES),
        str(ratio(found[_PEER], found[_BYTES])),
        *(error(found[name]) for name in (_OURS, _BYTES, _PEER)),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, show, and with `--write` enter in RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=9, help="how often each contestant has its turn")
    parser.add_argument("--write", action="store_true", help="enter the table in RESULTS.md")
    options = parser.parse_args(arguments)
    rows = [measure(case, options.rounds) for case in CASES]
    console().print(SECTION.table(rows))
    if options.write:
        today = datetime.datetime.now(datetime.UTC).date()
        heading = f"{today}, {THREADS} threads, {options.rounds} rounds; {versions('apache-tvm', 'onnxruntime')}."
        SECTION.write(SECTION.markdown(heading, rows))


if __name__ == "__main__":
    main()
