"""What symbolic sizes cost: one artifact for all sizes beside one for the size at hand.

    python -m benchmarks.symbolic                      # all, printed
    python -m benchmarks.symbolic --models bert-base   # one
    python -m benchmarks.symbolic --write              # all, into benchmarks/RESULTS.md

Both are compiled from the same model and called with the same inputs, each in a process of its own, in turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

import models
from benchmarks.contestants import tersor
from benchmarks.export import arrays
from benchmarks.results import Section, console, versions
from models import ModelCase
from optimizer import optimize
from optimizer.frontends import load_model
from optimizer.timing import compete, ratio, relative_error

SYMBOLIC = {
    "bert-base": (0, 1),
    "minilm": (0, 1),
    "gpt2": (0, 1),
    "vit-b16": (0,),
    "resnet-50": (0, 2, 3),
    "mobilenet-v2": (0, 2, 3),
    "ppocr-rec": (0, 3),
}
"""Model -> the axes of its inputs that have no size: batch, sequence, height, width."""
THREADS, ROUNDS = 2, 15
STATIC, OPEN = "static", "symbolic"
SECTION = Section(
    title="Symbolic sizes beside static ones",
    columns=("model", "symbolic", "static ms", "symbolic ms", "symbolic / static", "relative error"),
    texts=frozenset({"model", "symbolic"}),
    begin="<!-- begin: written by benchmarks.symbolic -->",
    end="<!-- end of benchmarks.symbolic -->",
)


def compile_both(case: ModelCase, axes: Sequence[int], folder: Path) -> dict[str, Path]:
    """The model with the sizes of its example and with symbolic ones, compiled and saved."""
    paths = {name: folder / f"{name}.tersor" for name in (STATIC, OPEN)}
    if isinstance(case.model, torch.nn.Module):
        shapes: Any = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in case.example_inputs)
        given: dict[str, Any] = {"model": case.model, "example_inputs": case.example_inputs}
        optimize(**given).save(paths[STATIC])
        optimize(**given, dynamic_shapes=shapes).save(paths[OPEN])
        return paths
    optimize(sized(case, None), example_inputs=case.example_inputs).save(paths[STATIC])
    optimize(sized(case, axes), example_inputs=case.example_inputs).save(paths[OPEN])
    return paths


def sized(case: ModelCase, axes: Sequence[int] | None) -> ir.Model:
    """An ONNX model with the sizes of its example, but for the axes that stay symbolic."""
    graph = load_model(case.model)
    for value, array in zip(graph.graph.inputs, arrays(case), strict=True):
        value.shape = ir.Shape(
            [f"{value.name}_{axis}" if axes and axis in axes else size for axis, size in enumerate(array.shape)]
        )
    return graph


def measure(name: str, threads: int, rounds: int) -> list[str]:
    """The cells of a model's row."""
    case, axes = models.load(name), SYMBOLIC[name]
    inputs = arrays(case)
    with tempfile.TemporaryDirectory() as folder:
        paths = compile_both(case, axes, Path(folder))
        builds = {each: partial(tersor, path, inputs, threads) for each, path in paths.items()}
        measured = compete(builds, rounds)
    error = relative_error(measured[OPEN].outputs, measured[STATIC].outputs)
    shape = inputs[0].shape
    sizes = "x".join(f"[{size}]" if axis in axes else str(size) for axis, size in enumerate(np.array(shape)))
    milliseconds = [f"{measured[each].seconds * 1e3:.2f}" for each in (STATIC, OPEN)]
    return [name, sizes, *milliseconds, str(ratio(measured[OPEN], measured[STATIC])), f"{error:.0e}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.symbolic", description="What symbolic sizes cost.")
    parser.add_argument("--models", nargs="+", choices=SYMBOLIC, default=list(SYMBOLIC), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each (default {ROUNDS})")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"of each (default {THREADS})")
    parser.add_argument("--write", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    screen = console()
    rows = []
    for name in options.models:
        with screen.status(name):
            rows.append(measure(name, options.threads, options.rounds))
        screen.print("  ".join(rows[-1]), markup=False)
    screen.print(SECTION.table(rows))
    if options.write:
        how = (
            f"`python -m benchmarks.symbolic --write`, {time.strftime('%Y-%m-%d')}: {options.threads} threads, "
            f"{options.rounds} rounds; {versions('apache-tvm', 'torch')}. In brackets: what the artifact leaves open."
        )
        SECTION.write(SECTION.markdown(how, rows))


if __name__ == "__main__":
    main()
