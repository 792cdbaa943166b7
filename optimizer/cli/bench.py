"""`tersor bench`: time a model beside ONNX Runtime, each in a process of its own."""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

from optimizer.cli.command import Result, add_optimizer_options, compile_model
from optimizer.errors import InputError

SUMMARY = "time a model beside ONNX Runtime, each in a process of its own"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", type=Path, help="an .onnx file, which is compiled first, or a .tersor file")
    parser.add_argument("--threads", type=int, help="threads of each (default: all cores)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each (default: %(default)s)")
    parser.add_argument(
        "--dim", type=_dim, action="append", default=[], metavar="NAME=SIZE", help="size of a symbolic dimension"
    )
    add_optimizer_options(parser)


def run(options: argparse.Namespace) -> Result:
    """The latencies."""
    from optimizer.api import load
    from optimizer.bench import bench
    from optimizer.ir.widen import widened
    from optimizer.onnx_writer import write_onnx
    from optimizer.reference import Oracle
    from optimizer.target import detect_cpu

    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        raise InputError("--rounds and --threads must be positive")
    saved = options.model.exists() and zipfile.is_zipfile(options.model)
    compiled = load(options.model) if saved else compile_model(options)
    inputs = Oracle(compiled.graph, seed=options.seed, dims=dict(options.dim)).inputs
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        artifact, onnx_model = options.model, options.model
        if saved:
            # ONNX Runtime gets a bfloat16 graph as one of float32: it has no kernels for the other.
            onnx_model = Path(folder) / "model.onnx"
            write_onnx(widened(compiled.graph, rounds=False), onnx_model)
        else:
            artifact = Path(folder) / "model.tersor"
            compiled.save(artifact, graph=False)
        threads = options.threads or detect_cpu().cores
        result = bench(artifact, onnx_model, inputs, threads=threads, rounds=options.rounds)
    return result.to_dict(), result


def _dim(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdigit() or not int(size):
        raise argparse.ArgumentTypeError(f"must be NAME=SIZE with a positive size, not {text!r}")
    return name, int(size)
