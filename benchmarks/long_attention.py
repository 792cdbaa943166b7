"""Attention over a long sequence beside ONNX Runtime and PyTorch: time, and memory beyond inputs and outputs.

    python -m benchmarks.long_attention                     # 16,384 tokens, 12 heads of 64, printed
    python -m benchmarks.long_attention --tokens 4096
    python -m benchmarks.long_attention --write             # into benchmarks/RESULTS.md

Each contestant runs in a process of its own, in turn. Memory is the highest that the process had during its first call,
less what it had before and less the output. The inputs begin at multiples of 64 bytes, as PyTorch's tensors do: our
executable copies what does not, such as most arrays of NumPy's own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from backends.relax.storage import aligned
from benchmarks.contestants import onnx_runtime, tersor
from benchmarks.results import Section, console, versions
from optimizer.timing import Build, Outputs, compete, ratio, relative_error

HEADS, WIDTH = 12, 64
SECTION = Section(
    title="Attention over a long sequence",
    columns=("contestant", "ms", "times ours", "relative error", "MB beyond inputs and outputs"),
    texts=frozenset({"contestant"}),
    begin="<!-- begin: written by benchmarks.long_attention -->",
    end="<!-- end of benchmarks.long_attention -->",
)


def model(tokens: int) -> onnx.ModelProto:
    """One `Attention` of `[1, 12, tokens, 64]`."""
    names = ("query", "key", "value")
    shape = [1, HEADS, tokens, WIDTH]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in (*names, "y")]
    node = helper.make_node("Attention", names, ["y"])
    graph = helper.make_graph([node], "attention", values[:3], values[3:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def inputs(tokens: int) -> list[np.ndarray]:
    """Normally distributed, the same each time."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal((1, HEADS, tokens, WIDTH), np.float32) for _ in range(3)]


def pytorch(arrays: list[np.ndarray], threads: int) -> Callable[[], Outputs]:
    """`scaled_dot_product_attention`, which has a flash kernel for processors."""
    import torch

    torch.set_num_threads(threads)
    query, key, value = map(torch.from_numpy, arrays)

    def call() -> Outputs:
        with torch.inference_mode():
            return [torch.nn.functional.scaled_dot_product_attention(query, key, value).numpy()]

    return call


def on_aligned(contestant: Callable[..., Callable[[], Outputs]], *arguments: object) -> Callable[[], Outputs]:
    """`contestant(*path, arrays, threads)`, on arrays that begin at multiples of 64 bytes.

    Copied in the contestant's own process, since what is sent to one may lie anywhere.
    """
    *path, arrays, threads = arguments
    return contestant(*path, [aligned(array) for array in arrays], threads)  # type: ignore[attr-defined]


def extra_megabytes(build: Build) -> float:
    """What the first call needs beyond what was there before it and its outputs; in a process of its own."""
    call = build()
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far becomes what it is now
    before = _status("VmRSS")
    outputs = call()
    return (_status("VmHWM") - before - sum(output.nbytes for output in outputs)) / 1e6


def _status(name: str) -> int:
    """A figure of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: this benchmark needs Linux")


def contestants(tokens: int, threads: int, folder: Path) -> dict[str, Build]:
    """Who competes; ours is compiled here."""
    from optimizer import optimize

    path, artifact = folder / "attention.onnx", folder / "attention.tersor"
    onnx.save(model(tokens), path)
    # Without the reference: ONNX Runtime's has a matrix of scores, 13 GB at 16,384 tokens. Outputs are compared below.
    optimize(path, target="cpu", verify="off", progress=False, cache=False).save(artifact)
    given = inputs(tokens)
    return {
        "tersor": partial(on_aligned, tersor, artifact, given, threads),
        "ONNX Runtime": partial(on_aligned, onnx_runtime, path, given, threads),
        "PyTorch": partial(on_aligned, pytorch, given, threads),
    }


def measure(tokens: int, threads: int, rounds: int) -> list[tuple[str, ...]]:
    """A row for each contestant."""
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        builds = contestants(tokens, threads, Path(folder))
        memory = {}
        for name, build in builds.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                memory[name] = pool.submit(extra_megabytes, build).result()
        measured = compete(builds, rounds)
    ours = measured["tersor"]
    for name, found in measured.items():
        error = relative_error(ours.outputs, found.outputs)
        times = "" if found is ours else str(ratio(found, ours))
        of_ours = "" if found is ours else f"{error:.1e}"
        rows.append((name, f"{found.seconds * 1e3:.0f}", times, of_ours, f"{memory[name]:.0f}"))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_attention", description=SECTION.title)
    parser.add_argument("--tokens", type=int, default=16_384, help="length of the sequence (default 16384)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each contestant (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant (default 3)")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args(arguments)
    out = console()
    with out.status(f"{options.tokens} tokens"):
        rows = measure(options.tokens, options.threads, options.rounds)
    out.print(SECTION.table(rows))
    if options.write:
        heading = (
            f"`python -m benchmarks.long_attention --tokens {options.tokens}`, {time.strftime('%Y-%m-%d')}: "
            f"{HEADS} heads of {WIDTH}, {options.threads} threads; {versions('onnxruntime', 'torch')}."
        )
        SECTION.write(SECTION.markdown(heading, rows))
        out.print("written to RESULTS.md")


if __name__ == "__main__":
    main()
