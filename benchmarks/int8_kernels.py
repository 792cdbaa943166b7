"""int8: matrix products as shares of what the processor can do, and quantized models beside those of the peers.

    python -m benchmarks.int8_kernels                          # all, printed
    python -m benchmarks.int8_kernels --models resnet-50       # one model, and the products
    python -m benchmarks.int8_kernels --models --write         # the products alone, into benchmarks/RESULTS.md

A product is the shortest of many runs of its kernel alone; the peak is that of `benchmarks.arithmetic_peak`. The models
are read by everyone from the same QDQ file, and timed as `optimizer.timing` does. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from benchmarks import contestants
from benchmarks.arithmetic_peak import arithmetic_peak
from benchmarks.contestants import OPENVINO, ORT, TERSOR
from benchmarks.int8_models import MODELS, quantized
from benchmarks.results import RESULTS, Section, console, versions
from optimizer import optimize
from optimizer.text import seconds
from optimizer.timing import Build, Measurement, ratio, relative_error

__all__ = ["SHAPES", "Product", "measure_model", "measure_product"]

THREADS, ROUNDS = 2, 15
RUNS = 60
"""Of a product; the shortest counts: what else the machine does only ever adds."""

SHAPES = ((128, 768, 768), (128, 768, 3072), (128, 3072, 768), (512, 768, 3072), (3136, 64, 256), (196, 1024, 256))
TAILS = {
    "float32": "y = MatMul(d, e)",
    "bias, int8": "u = MatMul(d, e) v = Add(u, b) y = QuantizeLinear(v, s, z)",
    "bias, Gelu, int8": "u = MatMul(d, e) v = Add(u, b) g = Gelu(v) y = QuantizeLinear(g, s, z)",
}
"""What follows a product."""

PRODUCTS = Section(
    "int8 products",
    ("rows x K x columns", "then", "time", "GOP/s", "of the peak"),
    frozenset({"rows x K x columns", "then"}),
    "<!-- begin: products, written by benchmarks.int8_kernels -->",
    "<!-- end of products by benchmarks.int8_kernels -->",
)
SPEED = Section(
    "int8 models",
    ("model", "tersor ms", "ONNX Runtime ms", "OpenVINO ms", "over ONNX Runtime", "over OpenVINO", "differs"),
    frozenset({"model"}),
    "<!-- begin: models, written by benchmarks.int8_kernels -->",
    "<!-- end of models by benchmarks.int8_kernels -->",
)


@dataclass(frozen=True)
class Product:
    """What a product of bytes took.

    Attributes:
        shape: Rows, the reduced axis, columns.
        tail: What follows it, a key of `TAILS`.
        seconds: Of its kernel.
        peak: Operations a second that the machine can do.
    """

    shape: tuple[int, int, int]
    tail: str
    seconds: float
    peak: float

    @property
    def speed(self) -> float:
        """Operations a second, a product and a sum counted as two."""
        return 2 * math.prod(self.shape) / self.seconds

    def cells(self) -> list[str]:
        """The row of the table."""
        shape = " x ".join(map(str, self.shape))
        return [shape, self.tail, seconds(self.seconds), f"{self.speed / 1e9:.0f}", f"{self.speed / self.peak:.0%}"]


def measure_product(shape: tuple[int, int, int], tail: str, peak: float, threads: int, runs: int = RUNS) -> Product:
    """Compile a product with a constant, and time its kernel."""
    rows, depth, _ = shape
    random = np.random.default_rng(0)
    compiled = optimize(_model(shape, tail), cache=False, verify="off", progress=False)
    compiled.num_threads = threads
    x = random.integers(0, 256, (rows, depth)).astype(np.uint8)
    kernels = [compiled.profile(x, repeats=1).kernels for _ in range(runs)]
    return Product(shape, tail, min(sum(k.seconds for k in each) for each in kernels), peak)


def _model(shape: tuple[int, int, int], tail: str) -> onnx.ModelProto:
    rows, depth, columns = shape
    random = np.random.default_rng(0)
    kind = "float" if tail == "float32" else "uint8"
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 23]> g (uint8[{rows},{depth}] x) => ({kind}[{rows},{columns}] y) {{
            d = DequantizeLinear(x, s, z) e = DequantizeLinear<axis=1>(w, t) {TAILS[tail]} }}"""
    )
    weights: dict[str, np.ndarray] = {
        "s": np.array(0.03, np.float32),
        "z": np.array(114, np.uint8),
        "w": random.integers(-127, 128, (depth, columns)).astype(np.int8),
        "t": random.uniform(0.001, 0.002, columns).astype(np.float32),
        "b": random.standard_normal(columns).astype(np.float32),
    }
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def measure_model(name: str, threads: int, rounds: int) -> list[str]:
    """One model beside the peers: the row of the table.

    Raises:
        ContestantFailed: One failed beside the others that does not fail alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = quantized(name, Path(folder))
        artifact = Path(folder) / f"{name}.tersor"
        optimize(model.path, cache=False, verify="off", progress=False).save(artifact)
        builds: dict[str, Build] = {
            TERSOR: partial(contestants.tersor, artifact, model.inputs, threads),
            ORT: partial(contestants.onnx_runtime, model.path, model.inputs, threads),
            OPENVINO: partial(contestants.openvino, model.path, model.inputs, threads),
        }
        if contestants.why_absent(OPENVINO, is_module=False):
            del builds[OPENVINO]
        measured, _ = contestants.compete_without_failures(builds, rounds)
    return [name, *_cells(measured)]


def _cells(measured: dict[str, Measurement]) -> list[str]:
    def time_of(who: str) -> str:
        return f"{measured[who].seconds * 1e3:.2f}" if who in measured else ""

    def over(who: str) -> str:
        return str(ratio(measured[who], measured[TERSOR])) if who in measured else ""

    error = relative_error(measured[TERSOR].outputs, measured[ORT].outputs) if ORT in measured else math.nan
    return [time_of(TERSOR), time_of(ORT), time_of(OPENVINO), over(ORT), over(OPENVINO), f"{error:.0e}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_kernels", description="int8, beside the peak.")
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each contestant (default {ROUNDS})")
    parser.add_argument("--write", action="store_true", help=f"write the tables into {RESULTS.name}")
    options = parser.parse_args(arguments)
    screen = console()
    peak = arithmetic_peak("int8", options.threads)
    products = [measure_product(s, tail, peak, options.threads).cells() for s in SHAPES for tail in TAILS]
    screen.print(PRODUCTS.table(products))
    models = []
    for name in options.models:
        models.append(measure_model(name, options.threads, options.rounds))
        screen.print("  ".join(models[-1]), markup=False)
    screen.print(SPEED.table(models))
    if options.write:
        how = f"`python -m benchmarks.int8_kernels`, {time.strftime('%Y-%m-%d')}: {options.threads} threads"
        PRODUCTS.write(PRODUCTS.markdown(f"{how}; the peak is {peak / 1e9:.0f} GOP/s.", products))
        if models:
            SPEED.write(SPEED.markdown(f"{how}, {options.rounds} rounds; {versions('onnxruntime')}.", models))
        screen.print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
