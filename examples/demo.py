"""A real sentence encoder, from torch.nn.Module to compiled code: optimized, timed beside ONNX Runtime, and used.

`make demo` sets everything up and runs this. The encoder is MiniLM with its pretrained weights, at 128 tokens.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import models
from benchmarks.contestants import onnx_runtime, tersor
from benchmarks.export import arrays, export
from models import minilm
from optimizer import optimize
from optimizer.timing import compete, ratio, relative_error

THREADS = 2
ROUNDS = 15
WIDTH = 120  # Columns of what is not a terminal.
QUERY = "How can I make my neural network answer faster?"
SENTENCES = (
    "Fishermen mended their nets on the pier",
    "Training large networks takes many graphics cards",
    "Reducing the inference latency of deep learning models",
    "The express train reaches the coast in three hours",
    "Neurons fire when their voltage crosses a threshold",
    "Smaller weights make a network quicker to evaluate",
    "Let the dough rise for an hour before baking",
    "Compiled models answer in less time than interpreted ones",
)


def rank(encode: Callable[..., np.ndarray], query: str, sentences: tuple[str, ...]) -> list[tuple[float, str]]:
    """The sentences with their cosine similarity to the query, the most similar first."""
    ids, mask = (tensor.numpy() for tensor in minilm.tokenize([query, *sentences]))
    embeddings = np.concatenate([encode(ids[i : i + 1], mask[i : i + 1]) for i in range(len(ids))])
    similarities = embeddings[1:] @ embeddings[0]
    return sorted(zip(similarities.tolist(), sentences, strict=True), reverse=True)


def latency_table(artifact: Path, case: models.ModelCase, folder: Path) -> Table:
    """Both runtimes in processes of their own, in turn."""
    inputs = arrays(case)
    ours, theirs = "tersor", "ONNX Runtime"
    measured = compete(
        {
            ours: partial(tersor, artifact, inputs, THREADS),
            theirs: partial(onnx_runtime, export(case, folder), inputs, THREADS),
        },
        rounds=ROUNDS,
    )
    table = Table(title=f"Latency of one sentence of {minilm.LENGTH} tokens, {THREADS} threads", title_justify="left")
    for column in ("", "median ms", "times ONNX Runtime's (quartiles)", "difference of outputs"):
        table.add_column(column, justify="left" if not column else "right")
    for name, measurement in measured.items():
        difference = relative_error(measurement.outputs, measured[theirs].outputs)
        table.add_row(
            name, f"{measurement.seconds * 1e3:.2f}", str(ratio(measurement, measured[theirs])), f"{difference:.1e}"
        )
    return table


def similarity_table(ranked: list[tuple[float, str]]) -> Table:
    """The sentences under the query."""
    table = Table(title=f'Sentences by similarity to "{QUERY}"', title_justify="left")
    table.add_column("similarity", justify="right")
    table.add_column("")
    table.add_column("sentence")
    for similarity, sentence in ranked:
        table.add_row(f"{similarity:.3f}", "█" * round(20 * max(similarity, 0)), sentence)
    return table


def main() -> None:
    """Run the demo."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    case = models.load("minilm")
    console.print(f"MiniLM sentence encoder: {case.bytes / 1e6:.0f} MB of pretrained weights, a torch.nn.Module")
    compiled = optimize(case.model, target="cpu", example_inputs=case.example_inputs)
    compiled.num_threads = THREADS
    console.print(compiled.report)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = folder / "minilm.tersor"
        compiled.save(artifact)
        with console.status("timing, each contestant in a process of its own"):
            latency = latency_table(artifact, case, folder)
    console.print(latency)
    console.print(similarity_table(rank(compiled, QUERY, SENTENCES)))


if __name__ == "__main__":
    main()
