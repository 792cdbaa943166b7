"""What symbolic sizes cost: one artifact for all sizes beside one for the size at hand.

    python -m benchmarks.symbolic                      # all, printed
    python -m benchmarks.symbolic --models bert-base   # one
    python -m benchmarks.symbolic --write              # all, into benchmarks/RESULTS.md

One artifact for all sizes is compiled with the first sizes as its example. At these and at others it is called in turn
with an artifact for exactly those, with the same inputs, each in a process of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from optimizer.timing import Measurement, compete, ratio, relative_error

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
OTHERS: dict[str, tuple[tuple[int, ...], ...]] = {
    "bert-base": ((4, 64),),
    "minilm": ((8, 37),),
    "gpt2": ((2, 200),),
    "vit-b16": ((3,),),
    "resnet-50": ((4, 320, 320), (1, 448, 448), (1, 640, 480)),
    "mobilenet-v2": ((4, 320, 320), (1, 640, 480)),
    "ppocr-rec": ((4, 480),),
}
"""Model -> sizes of these axes at which it is compared, besides those of its example."""
THREADS, ROUNDS = 2, 15
STATIC, OPEN = "static", "symbolic"
SECTION = Section(
    title="Symbolic sizes beside static ones",
    columns=("model", "symbolic", "static ms", "symbolic ms", "symbolic / static", "relative error"),
    texts=frozenset({"model", "symbolic"}),
    begin="<!-- begin: written by benchmarks.symbolic -->",
    end="<!-- end of benchmarks.symbolic -->",
)


def compile_static(case: ModelCase, path: Path) -> None:
    """Compile the model for the sizes of its example, and save it."""
    model: Any = case.model if isinstance(case.model, torch.nn.Module) else sized(case, None)
    optimize(model, example_inputs=case.example_inputs).save(path)


def compile_open(case: ModelCase, axes: Sequence[int], path: Path) -> None:
    """Compile the model for any sizes of the axes, and save it."""
    if isinstance(case.model, torch.nn.Module):
        shapes: Any = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for _ in case.example_inputs)
        optimize(case.model, example_inputs=case.example_inputs, dynamic_shapes=shapes).save(path)
    else:
        optimize(sized(case, axes), example_inputs=case.example_inputs).save(path)


def resized(case: ModelCase, axes: Sequence[int], sizes: Sequence[int]) -> ModelCase:
    """The model with an example of other sizes, which repeats the elements of its own."""
    wanted = dict(zip(axes, sizes, strict=True))
    others = [np.resize(a, [wanted.get(axis, size) for axis, size in enumerate(a.shape)]) for a in arrays(case)]
    if isinstance(case.example_inputs, dict):
        return replace(case, example_inputs=dict(zip(case.example_inputs, others, strict=True)))
    return replace(case, example_inputs=tuple(map(torch.from_numpy, others)))


def sized(case: ModelCase, axes: Sequence[int] | None) -> ir.Model:
    """An ONNX model with the sizes of its example, but for the axes that stay symbolic."""
    graph = load_model(case.model)
    for value, array in zip(graph.graph.inputs, arrays(case), strict=True):
        value.shape = ir.Shape(
            [f"{value.name}_{axis}" if axes and axis in axes else size for axis, size in enumerate(array.shape)]
        )
    return graph


def measure(name: str, threads: int, rounds: int) -> Iterator[list[str]]:
    """The cells of a model's rows, one for each choice of sizes."""
    case, axes = models.load(name), SYMBOLIC[name]
    with tempfile.TemporaryDirectory() as folder:
        paths = {each: Path(folder) / f"{each}.tersor" for each in (STATIC, OPEN)}
        compile_open(case, axes, paths[OPEN])
        for at in (case, *(resized(case, axes, sizes) for sizes in OTHERS[name])):
            compile_static(at, paths[STATIC])
            inputs = arrays(at)
            builds = {each: partial(tersor, path, inputs, threads) for each, path in paths.items()}
            yield [name, *_cells(compete(builds, rounds), inputs[0].shape, axes)]


def _cells(measured: dict[str, Measurement], shape: Sequence[int], axes: Sequence[int]) -> list[str]:
    error = relative_error(measured[OPEN].outputs, measured[STATIC].outputs)
    sizes = "x".join(f"[{size}]" if axis in axes else str(size) for axis, size in enumerate(shape))
    milliseconds = [f"{measured[each].seconds * 1e3:.2f}" for each in (STATIC, OPEN)]
    return [sizes, *milliseconds, str(ratio(measured[OPEN], measured[STATIC])), f"{error:.0e}"]


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
        for row in measure(name, options.threads, options.rounds):
            rows.append(row)
            screen.print("  ".join(row), markup=False)
    screen.print(SECTION.table(rows))
    if options.write:
        how = (
            f"`python -m benchmarks.symbolic --write`, {time.strftime('%Y-%m-%d')}: {options.threads} threads, "
            f"{options.rounds} rounds; {versions('apache-tvm', 'torch')}. In brackets: what the artifact leaves open."
        )
        SECTION.write(SECTION.markdown(how, rows))


if __name__ == "__main__":
    main()
