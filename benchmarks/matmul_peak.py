"""Matrix products of the suite's models, as shares of what the processor's multiply-adds reach in a bare loop.

    python -m benchmarks.matmul_peak [--precisions float32 bfloat16] [--write]

A product is the shortest of many runs of its kernel alone, with a constant on the right and nothing behind it; the peak
is that of `benchmarks.arithmetic_peak`, measured before and after, the higher. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from benchmarks.arithmetic_peak import arithmetic_peak
from benchmarks.results import RESULTS, Section, console
from optimizer import optimize
from optimizer.text import seconds

__all__ = ["SECTION", "SHAPES", "Product", "main", "measure"]

SECTION = Section(
    "Products of the models",
    ("rows x K x columns", "of", "precision", "time", "GFLOP/s", "of the peak"),
    frozenset({"rows x K x columns", "of", "precision"}),
    "<!-- begin: written by benchmarks.matmul_peak -->",
    "<!-- end of benchmarks.matmul_peak -->",
)
PRECISIONS = ("float32", "bfloat16")
RUNS = 80
"""Of a product; the shortest counts: what else the machine does only ever adds."""

SHAPES: dict[tuple[int, int, int], str] = {
    (128, 768, 2304): "BERT, GPT-2",
    (128, 768, 768): "BERT, GPT-2",
    (128, 768, 3072): "BERT, GPT-2",
    (128, 3072, 768): "BERT, GPT-2",
    (128, 768, 50257): "GPT-2",
    (512, 768, 2304): "BERT, 512 tokens",
    (512, 768, 768): "BERT, 512 tokens",
    (512, 768, 3072): "BERT, 512 tokens",
    (512, 3072, 768): "BERT, 512 tokens",
    (128, 384, 1152): "MiniLM",
    (128, 384, 384): "MiniLM",
    (128, 384, 1536): "MiniLM",
    (128, 1536, 384): "MiniLM",
    (4096, 384, 1152): "MiniLM, batch 32",
    (4096, 384, 384): "MiniLM, batch 32",
    (4096, 384, 1536): "MiniLM, batch 32",
    (4096, 1536, 384): "MiniLM, batch 32",
    (197, 768, 2304): "ViT",
    (197, 768, 768): "ViT",
    (197, 768, 3072): "ViT",
    (197, 3072, 768): "ViT",
    (1500, 512, 1536): "Whisper",
    (1500, 512, 512): "Whisper",
    (1500, 512, 2048): "Whisper",
    (1500, 2048, 512): "Whisper",
}
"""Rows, the reduced axis, columns, and whose they are. Queries, keys and values are one product, as when compiled."""


@dataclass(frozen=True)
class Product:
    """What a product took.

    Attributes:
        shape: Rows, the reduced axis, columns.
        precision: Of its factors.
        seconds: Of its kernel.
        peak: Operations a second that the machine can do.
    """

    shape: tuple[int, int, int]
    precision: str
    seconds: float
    peak: float

    @property
    def share(self) -> float:
        """Of the peak; a product and a sum are two operations."""
        return 2 * math.prod(self.shape) / self.seconds / self.peak

    def cells(self) -> list[str]:
        """The row of the table."""
        speed = f"{self.share * self.peak / 1e9:.0f}"
        shape = " x ".join(map(str, self.shape))
        return [shape, SHAPES.get(self.shape, ""), self.precision, seconds(self.seconds), speed, f"{self.share:.0%}"]


def measure(shape: tuple[int, int, int], precision: str, threads: int, runs: int = RUNS) -> float:
    """Compile a product with a constant; the least seconds that its kernel takes, without rounding what it reads."""
    rows, depth, columns = shape
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        f"""<ir_version: 11, opset_import: ["" : 23]> g (float[{rows},{depth}] x) => (float[{rows},{columns}] y)
            {{ y = MatMul(x, w) }}"""
    )
    weight = random.standard_normal((depth, columns), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    compiled = optimize(model, precision=precision, cache=False, verify="off", progress=False)
    compiled.num_threads = threads
    x = random.standard_normal((rows, depth), np.float32)
    profiles = [compiled.profile(x, repeats=1).kernels for _ in range(runs)]
    return min(max(kernel.seconds for kernel in kernels) for kernels in profiles)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matmul_peak", description="Products, beside the peak.")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"write the table into {RESULTS.name}")
    options = parser.parse_args(arguments)
    screen = console()
    products, peaks = [], []
    for precision in options.precisions:
        peak = arithmetic_peak(precision, options.threads)
        times = {shape: measure(shape, precision, options.threads) for shape in SHAPES}
        peak = max(peak, arithmetic_peak(precision, options.threads))
        products += [Product(shape, precision, least, peak) for shape, least in times.items()]
        peaks.append(f"{peak / 1e9:.0f} GFLOP/s in {precision}")
    rows = [product.cells() for product in products]
    screen.print(SECTION.table(rows))
    heading = (
        f"`python -m benchmarks.matmul_peak`, {time.strftime('%Y-%m-%d')}: {options.threads} threads; "
        f"the peak is {', '.join(peaks)}."
    )
    screen.print(heading, markup=False)
    if options.write:
        SECTION.write(SECTION.markdown(heading, rows))
        screen.print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
