"""Perplexity of SmolLM2-135M with weights of 4 bits, by method.

    python -m benchmarks.perplexity                             # blocks of 64 and 128, and per channel
    python -m benchmarks.perplexity --block-sizes 64 --methods rtn auto
    python -m benchmarks.perplexity --block-sizes 64 128 --methods rtn auto onnxruntime-gptq --symmetric
    python -m benchmarks.perplexity --keep rows.json --write    # goes on where it was; into benchmarks/RESULTS.md

The text is Python's own manual (`pydoc_data.topics`): every second topic is calibration data, the others are measured.
Many topics repeat paragraphs of others: each paragraph counts where it stands first.
Matrices are quantized, the word list is not (the product that gives the logits is). The baseline is what the package
stores, which has 4 bits in blocks of 32 itself; see `models/smollm2.py`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from tokenizers import Tokenizer

from benchmarks.results import Section, console, versions
from models import smollm2
from optimizer.atomic_file import atomic_write
from optimizer.calibration import Samples
from optimizer.frontends import load_model
from optimizer.pass_manager import PassManager
from passes.pipelines import default_pipeline
from passes.quantize_int4 import QuantizeInt4

__all__ = [
    "METHODS",
    "SECTION",
    "Logarithms",
    "Row",
    "calibration_tokens",
    "cells",
    "divergence",
    "logarithms",
    "main",
    "measured_tokens",
    "ordered",
    "perplexity",
    "perplexity_of",
    "plain_session",
    "predictions",
    "text_of",
]

Tokens = npt.NDArray[np.int64]
Logarithms = npt.NDArray[np.floating[Any]]
METHODS = ("rtn", "hqq", "awq", "auto", "nf4", "onnxruntime-rtn", "onnxruntime-gptq")
"""Those of `quantize-int4`, and peers: the quantizer of MatMulNBits, and Neural Compressor's GPTQ, which it brings."""

_CALIBRATION = (32, 256)
_MEASURED = (12, 512)
"""Texts, and tokens in each."""
_OPERATORS = "MatMul+Gemm"
_BASELINE = "float32 (as stored, 4 bits in blocks of 32)"

SECTION = Section(
    title="Perplexity of SmolLM2-135M with weights of 4 bits",
    columns=("scales", "zero points", "method", "perplexity", "increase", "of RTN's increase", "seconds"),
    texts=frozenset({"scales", "zero points", "method"}),
    begin="<!-- begin: written by benchmarks.perplexity -->",
    end="<!-- end of benchmarks.perplexity -->",
)


@dataclass(frozen=True)
class Row:
    """One quantized model.

    Attributes:
        block_size: Rows of a scale; 0 for one scale an output, -1 for no quantization.
        symmetric: Without zero points.
        method: One of `METHODS`, or `"float32"`.
        perplexity: On the measured text.
        seconds: That the quantization took.
    """

    block_size: int
    symmetric: bool
    method: str
    perplexity: float
    seconds: float


def calibration_tokens(tokenizer: Tokenizer) -> Tokens:
    """`[B, S]`, from every second topic."""
    return _tokens(tokenizer, text_of(0), *_CALIBRATION)


def measured_tokens(tokenizer: Tokenizer) -> Tokens:
    """`[B, S]`, from the other topics."""
    return _tokens(tokenizer, text_of(1), *_MEASURED)


def text_of(half: int) -> str:
    """Of the manual: the paragraphs that stand first in a topic with an even or an odd number."""
    first: dict[str, tuple[int, str]] = {}
    for number, name in enumerate(sorted(topics)):
        for paragraph in topics[name].split("\n\n"):
            first.setdefault(" ".join(paragraph.split()), (number, paragraph))
    return "\n\n".join(paragraph for number, paragraph in first.values() if number % 2 == half)


def _tokens(tokenizer: Tokenizer, text: str, count: int, length: int) -> Tokens:
    """Pieces of equal length, spread over a text."""
    ids = np.array(tokenizer.encode(text).ids)
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return np.stack([ids[start : start + length] for start in starts])


def inputs_of(tokens: Tokens) -> dict[str, Tokens]:
    """What the model is called with, for one text."""
    return {"input_ids": tokens[None], "attention_mask": np.ones_like(tokens[None])}


def plain_session(model: Path, threads: int) -> onnxruntime.InferenceSession:
    """A model in ONNX Runtime, with products in float32 for all contestants: what is compared is the weights."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    return onnxruntime.InferenceSession(model, options)


def float_model() -> ir.Model:
    """SmolLM2 as an optimized graph."""
    example = torch.zeros((2, 8), dtype=torch.int64)
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=8192)
    sizes = {0: batch, 1: length}
    model = load_model(
        smollm2.decoder(),
        example_inputs=(example, torch.ones_like(example)),
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
    )
    PassManager(default_pipeline("onnx")).run(model)
    return model


def perplexity(model: Path, tokens: Tokens, threads: int) -> float:
    """E to the mean negative logarithm of the probability of each token after those before it."""
    return perplexity_of(predictions(model, tokens, threads), tokens)


def perplexity_of(found: Iterable[Logarithms], tokens: Tokens) -> float:
    """The same, of what a model predicts for each text."""
    pairs = zip(found, tokens, strict=True)
    right = np.concatenate([logs[np.arange(len(text) - 1), text[1:]] for logs, text in pairs])
    return math.exp(-float(right.mean(dtype=np.float64)))


def predictions(model: Path, tokens: Tokens, threads: int) -> Iterator[Logarithms]:
    """For each text, the logarithms of the probabilities of all tokens `[S - 1, V]`, from its second place on."""
    session = plain_session(model, threads)
    return (logarithms(session.run(None, inputs_of(text))[0][0, :-1]) for text in tokens)


def logarithms(logits: npt.NDArray[Any]) -> Logarithms:
    """Of the probabilities that logits `[S, V]` stand for."""
    scores = logits.astype(np.float64)
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores


def divergence(found: Sequence[Logarithms], exact: Sequence[Logarithms]) -> float:
    """The mean of Kullback and Leibler's divergence from what the float32 model predicts, in nats for each token."""
    pairs = zip(found, exact, strict=True)
    return float(np.concatenate([(np.exp(right) * (right - logs)).sum(axis=1) for logs, right in pairs]).mean())


def quantize(model: Path, method: str, block_size: int, symmetric: bool, tokens: Tokens, result: Path) -> None:
    """Write a quantized model."""
    if method.startswith("onnxruntime"):
        _quantize_in_onnxruntime(model, method, block_size, symmetric, tokens, result)
        return
    graph = ir.load(model)
    samples = Samples.of(graph.graph, map(inputs_of, tokens)) if method in ("auto", "gptq", "awq") else None
    pass_ = QuantizeInt4(
        method=method, block_size=block_size, symmetric=symmetric, op_types_to_quantize=_OPERATORS, samples=samples
    )
    PassManager([pass_]).run(graph)
    ir.save(graph, result, external_data=f"{result.name}.data")


def _quantize_in_onnxruntime(
    model: Path, method: str, block_size: int, symmetric: bool, tokens: Tokens, result: Path
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, matmul_nbits_quantizer

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._texts: Iterator[Tokens] = iter(tokens)

        def get_next(self) -> Mapping[str, Tokens] | None:
            text = next(self._texts, None)
            return None if text is None else inputs_of(text)

    logging.disable(logging.INFO)
    config = None
    if method == "onnxruntime-gptq":
        config = matmul_nbits_quantizer.GPTQWeightOnlyQuantConfig(Reader(), actorder=False, mse=True)
    loaded = onnx.load(model)
    for number, node in enumerate(loaded.graph.node):
        node.name = f"node{number}"  # it knows nodes by their names, and needs one for each
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        loaded, block_size=block_size, is_symmetric=symmetric, algo_config=config
    )
    quantizer.process()
    onnx.save(quantizer.model.model, result, save_as_external_data=True, location=f"{result.name}.data")


def measure(
    settings: Sequence[tuple[int, bool, str]], threads: int, rows: list[Row], done: Callable[[Row], None]
) -> None:
    """Append a row for each setting that is not among the rows yet, after one for the model as it is."""
    present = {(row.block_size, row.symmetric, row.method) for row in rows}
    missing = [setting for setting in ((-1, True, "float32"), *settings) if setting not in present]
    if not missing:
        return
    tokenizer = smollm2.tokenizer()
    given, measured = calibration_tokens(tokenizer), measured_tokens(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "float32.onnx"
        ir.save(float_model(), original, external_data="float32.onnx.data")
        for block_size, symmetric, method in missing:
            path, start = original, time.perf_counter()
            if method != "float32":
                path = Path(folder) / "quantized.onnx"
                Path(f"{path}.data").unlink(missing_ok=True)
                quantize(original, method, block_size, symmetric, given, path)
            seconds = time.perf_counter() - start
            rows.append(Row(block_size, symmetric, method, perplexity(path, measured, threads), seconds))
            done(rows[-1])


def cells(row: Row, rows: Sequence[Row], baseline_name: str = "float32") -> tuple[str, ...]:
    """A row as text, beside the baseline and RTN at its setting."""
    baseline = next(each.perplexity for each in rows if each.method == "float32")
    if row.method == "float32":
        return "none", "", baseline_name, f"{baseline:.3f}", "", "", ""
    plain = [
        each.perplexity - baseline
        for each in rows
        if (each.method, each.block_size, each.symmetric) == ("rtn", row.block_size, row.symmetric)
    ]
    increase = row.perplexity - baseline
    part = f"{increase / plain[0]:.2f}" if plain and row.method != "rtn" else ""
    scales = f"{row.block_size} weights" if row.block_size else "an output"
    zeros = "no" if row.symmetric or row.method == "nf4" else "yes"
    return scales, zeros, row.method, f"{row.perplexity:.3f}", f"{increase:.3f}", part, f"{row.seconds:.0f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perplexity", description=SECTION.title)
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[64, 128, 0], help="0 is one scale an output")
    parser.add_argument("--methods", nargs="+", default=["rtn", "hqq", "auto"], choices=METHODS)
    parser.add_argument("--symmetric", action="store_true", help="without zero points")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a file of rows: what is in it is not measured again")
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args(arguments)
    if "onnxruntime-gptq" in options.methods and (not options.symmetric or 0 in options.block_sizes):
        # onnxruntime 1.31: an odd number of blocks is packed as if rows had no ends, and a block is never a whole row
        parser.error("onnxruntime-gptq needs --symmetric, and block sizes that are not 0: it cannot pack other weights")
    out = console()
    kept: list[dict[str, Any]] = []
    if options.keep is not None and options.keep.exists():
        kept = json.loads(options.keep.read_text())
    rows = [Row(**row) for row in kept]

    def done(row: Row) -> None:
        out.print(*cells(row, rows, _BASELINE))
        if options.keep is not None:
            with atomic_write(options.keep) as file:
                file.write(json.dumps([asdict(each) for each in rows], indent=1).encode())

    settings = [(size, options.symmetric, method) for size in options.block_sizes for method in options.methods]
    measure(settings, options.threads, rows, done)
    table = [cells(row, rows, _BASELINE) for row in ordered(rows, METHODS)]
    out.print(SECTION.table(table))
    if options.write:
        heading = (
            f"`python -m benchmarks.perplexity`, {time.strftime('%Y-%m-%d')}; {versions('onnxruntime')}.\n"
            f"{_MEASURED[0]} texts of {_MEASURED[1]} tokens of `pydoc_data.topics` are measured; calibration data are "
            f"{_CALIBRATION[0]} texts of {_CALIBRATION[1]}\ntokens from other topics. Seconds are those of the "
            "quantization."
        )
        SECTION.write(SECTION.markdown(heading, table))
        out.print("written to RESULTS.md")


def ordered(rows: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """The model as it is, then by block size, per channel last, and by method."""

    def key(row: Row) -> tuple[int, bool, int]:
        size = {-1: -1, 0: 1 << 20}.get(row.block_size, row.block_size)
        return size, row.symmetric, methods.index(row.method) if row.method in methods else -1

    return sorted(rows, key=key)


if __name__ == "__main__":
    main()
