"""Weights of 4 bits for a model of more than a billion parameters: how much memory and time that takes.

    python -m benchmarks.large_model                        # Phi-1.5's shape, RTN and GPTQ
    python -m benchmarks.large_model --layers 2 --methods rtn hqq gptq auto
    python -m benchmarks.large_model --write                # into benchmarks/RESULTS.md

The weights are random (`models/phi.py`) and stored in 16 bits, 2.8 GB. Each row is a process of its own, from reading
the file to writing the quantized one. Its memory is what it has allocated: pages of the file that are mapped and read
belong to the system, which takes them back when it needs them. The bound is 1.5 times the bytes of the weights in 16
bits, and 2 GB.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.results import Section, console, versions
from models import phi
from optimizer.api import optimize

__all__ = ["SECTION", "main"]

SECTION = Section(
    title="4-bit weights of a large model",
    columns=("weights", "method", "peak memory, GB", "bound, GB", "seconds", "processor seconds", "file, GB"),
    texts=frozenset({"weights", "method"}),
    begin="<!-- begin: written by benchmarks.large_model -->",
    end="<!-- end of benchmarks.large_model -->",
)
_METHODS = ("rtn", "hqq", "gptq", "auto")
_PERIOD = 0.01
"""Seconds between two looks at a process."""


def quantize(path: Path, method: str, tokens: Sequence[int], result: Path) -> None:
    """Quantize a file as a user would.

    Args:
        path: Of the model.
        method: Of `quantize-int4`.
        tokens: Texts of calibration data, tokens in each, and how many different ones there are; they are random.
        result: Is written.
    """
    calibration = None
    if method in ("gptq", "auto"):
        rng = np.random.default_rng(1)
        texts, length, words = tokens
        calibration = [{"input_ids": rng.integers(0, words, (1, length))} for _ in range(texts)]
    compiled = optimize(
        path, "onnx", passes=f"quantize-int4{{method={method}}}", calibration=calibration, verify="off", cache=False
    )
    compiled.save_onnx(result)


def anonymous_bytes(pid: int) -> int:
    """What a process has allocated and touched; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(size) for size in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status)) * 1024


def watched(command: Sequence[str]) -> tuple[int, float, float]:
    """Run a command.

    Returns:
        The most memory that it had allocated, in bytes; the seconds that it took; and those of the processors.
    """
    start = time.perf_counter()
    before = os.times()
    with subprocess.Popen(command) as process:
        peak = 0
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(_PERIOD):
                peak = max(peak, anonymous_bytes(process.pid))

        thread = threading.Thread(target=watch)
        thread.start()
        code = process.wait()
        done.set()
        thread.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return peak, time.perf_counter() - start, spent


def measure(path: Path, shape: phi.Shape, dtype: str, method: str, texts: int, length: int) -> tuple[str, ...]:
    """A row: the model with one method."""
    result = path.with_name("quantized.onnx")
    options = ["--child", path, result, method, texts, length, shape.words]
    peak, seconds, spent = watched([sys.executable, "-m", "benchmarks.large_model", *map(str, options)])
    size = sum(file.stat().st_size for file in path.parent.glob("quantized.onnx*"))
    for file in path.parent.glob("quantized.onnx*"):
        file.unlink()
    bound = 1.5 * 2 * shape.parameters + 2e9
    weights = f"{shape.parameters / 1e9:.2f} billion of {dtype}"
    return (
        weights,
        method,
        *(f"{x / 1e9:.2f}" for x in (peak, bound)),
        f"{seconds:.0f}",
        f"{spent:.0f}",
        f"{size / 1e9:.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_model", description=SECTION.title)
    parser.add_argument("--layers", type=int, default=phi.Shape().layers)
    parser.add_argument("--methods", nargs="+", default=["rtn", "gptq"], choices=_METHODS)
    parser.add_argument("--dtype", default="float16", choices=phi.TYPES, help="of the weights (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=16, help="of calibration data (default: %(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens in each of them (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        path, result, method, *tokens = options.child
        quantize(Path(path), method, [int(count) for count in tokens], Path(result))
        return
    out, rows = console(), []
    shape = phi.Shape(layers=options.layers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phi.onnx"
        phi.write(path, shape, options.dtype)
        for method in options.methods:
            rows.append(measure(path, shape, options.dtype, method, options.texts, options.length))
            out.print(*rows[-1])
    out.print(SECTION.table(rows))
    if options.write:
        heading = (
            f"`python -m benchmarks.large_model`, {time.strftime('%Y-%m-%d')}; {versions('numpy', 'onnxruntime')}.\n"
            f"Phi-1.5's shape, random weights; blocks of 64. Calibration data of GPTQ are {options.texts} texts of "
            f"{options.length} tokens.\nFrom reading the file to writing the quantized one, in a process of its own."
        )
        SECTION.write(SECTION.markdown(heading, rows))
        out.print("written to RESULTS.md")


if __name__ == "__main__":
    main()
