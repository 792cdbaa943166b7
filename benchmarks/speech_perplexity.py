"""Perplexity of Whisper base's decoder with weights of 4 bits, when it is told what was said before each token.

    python -m benchmarks.speech_perplexity --data /usr/share/pocketsphinx/test/data
    python -m benchmarks.speech_perplexity --data DATA --block-sizes 64 --methods rtn hqq auto
    python -m benchmarks.speech_perplexity --data DATA --flite /opt/bin/flite
    python -m benchmarks.speech_perplexity --data DATA --write         # into benchmarks/RESULTS.md

Measured are five sentences of a novel that Debian's package pocketsphinx-testdata has somebody read, and sentences of
Python's manual that Debian's speech synthesis flite reads. Calibration data are other sentences of the manual in other
voices, and the names of cards that pocketsphinx-testdata has. They must be speech with what is said in it: with texts
that nobody says in the sounds, a decoder attends to nothing, and GPTQ on these inputs loses more than RTN. The encoder
stays in float32; all matrices of the decoder are quantized, its word list is not.

There are some hundred tokens, and perplexity can fall by chance where the increase is small: how far predictions are
off those of the float32 model (Kullback and Leibler's divergence, in nats for each token) tells methods apart.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import tempfile
import time
import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor

from benchmarks.perplexity import Logarithms, Row, divergence, logarithms, ordered, plain_session, text_of
from benchmarks.perplexity import cells as perplexity_cells
from benchmarks.results import Section, console, versions
from models import whisper_base
from optimizer.calibration import Samples
from optimizer.frontends import load_model
from optimizer.pass_manager import PassManager
from passes.pipelines import default_pipeline
from passes.quantize_int4 import QuantizeInt4

__all__ = [
    "SECTION",
    "Utterance",
    "cells",
    "main",
    "perplexity",
    "predictions",
    "sentences",
    "speak",
    "transcripts",
]

Inputs = dict[str, npt.NDArray[np.generic]]
METHODS = ("rtn", "hqq", "awq", "auto")
_START = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
_END = "<|endoftext|>"
_RATE = 16000
_GIVEN, _MEASURED = 32, 16
"""Sentences of the manual that are calibration data, and that are measured."""
_VOICES = (("awb", "rms"), ("slt",))
"""Of flite, in which they are read."""
_WORDS = range(18, 61)
"""So many fit into the half minute that Whisper listens."""

SECTION = Section(
    title="Perplexity of Whisper base's decoder with weights of 4 bits",
    columns=("scales", "zero points", "method", "perplexity", "increase", "divergence", "of RTN's", "seconds"),
    texts=frozenset({"scales", "zero points", "method"}),
    begin="<!-- begin: written by benchmarks.speech_perplexity -->",
    end="<!-- end of benchmarks.speech_perplexity -->",
)


class Utterance:
    """What the decoder is given for a sound.

    Args:
        hidden: The encoder's hidden states `[1, T, D]`.
        tokens: What was said, between the tokens of the start and the end.
        prefix: How many tokens stand in front of what was said.
    """

    def __init__(self, hidden: npt.NDArray[np.float32], tokens: Sequence[int], prefix: int) -> None:
        self.inputs: Inputs = {"input_ids": np.array([tokens[:-1]]), "encoder_hidden_states": hidden}
        self.targets = np.array(tokens[prefix:])
        self.prefix = prefix


def transcripts(folder: Path, file: str) -> dict[str, str]:
    """What is said in the sounds of a folder, by their names."""
    lines = (folder / file).read_text().splitlines()
    found = (re.fullmatch(r"<s> (.*?) *</s> \((.*)\)", line.strip()) for line in lines)
    return {match[2]: match[1] for match in found if match is not None}


def predictions(model: Path, utterances: Sequence[Utterance], threads: int) -> list[Logarithms]:
    """The logarithms of the probabilities of all tokens `[S, V]`, in the place of each that was said."""
    session = plain_session(model, threads)
    found = []
    for each in utterances:
        (logits,) = session.run(None, each.inputs)
        found.append(logarithms(logits[0, each.prefix - 1 :]))
    return found


def perplexity(found: Sequence[Logarithms], utterances: Sequence[Utterance]) -> float:
    """E to the mean negative logarithm of the probability of each token after those before it."""
    pairs = zip(found, utterances, strict=True)
    right = np.concatenate([logs[np.arange(len(each.targets)), each.targets] for logs, each in pairs])
    return math.exp(-float(right.mean()))


def sentences(half: int) -> list[str]:
    """Of Python's manual, those that can be read aloud; see `benchmarks.perplexity.text_of`."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text_of(half).split("\n\n"))
    plain = re.compile(r"""[A-Za-z ,.;:'"()-]+\.""")
    return [text for text in paragraphs if plain.fullmatch(text) and len(text.split()) in _WORDS]


def speak(flite: str, voice: str, text: str, sound: Path) -> None:
    """Have flite read a text into a file of 16 kHz.

    Raises:
        CalledProcessError: It does not know the voice.
    """
    subprocess.run([flite, "-voice", voice, "-t", text, "-o", str(sound)], check=True)


def utterances(data: Path, flite: str) -> tuple[list[Utterance], list[Utterance]]:
    """For calibration, and to be measured.

    Args:
        data: The folder of pocketsphinx's test data.
        flite: The program.
    """
    tokenizer = whisper_base.tokenizer()
    start, end = _ids(tokenizer, "".join(_START)), _ids(tokenizer, _END)
    encoder, features = whisper_base.encoder(), WhisperFeatureExtractor(feature_size=80)  # type: ignore[no-untyped-call]

    def said(path: Path, text: str) -> Utterance:
        with wave.open(str(path)) as file, torch.no_grad():
            sound = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
            heard = features(sound, sampling_rate=_RATE, return_tensors="pt").input_features
            hidden = np.asarray(encoder(heard).last_hidden_state.numpy(), np.float32)
        return Utterance(hidden, [*start, *_ids(tokenizer, f" {text}"), *end], len(start))

    def recorded(folder: str, file: str) -> list[Utterance]:
        found = transcripts(data / folder, file).items()
        return [said(data / folder / f"{name}.wav", text.capitalize()) for name, text in found]

    def read(half: int, count: int) -> Iterator[Utterance]:
        texts, voices = sentences(half), _VOICES[half]
        with tempfile.TemporaryDirectory() as folder:
            sound = Path(folder) / "sound.wav"
            for number, place in enumerate(np.linspace(0, len(texts) - 1, count).astype(int)):
                speak(flite, voices[number % len(voices)], texts[place], sound)
                yield said(sound, texts[place])

    given = [*recorded("cards", "cards.transcription"), *read(0, _GIVEN)]
    return given, [*recorded("librivox", "transcription"), *read(1, _MEASURED)]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def float_model() -> ir.Model:
    """The decoder as an optimized graph."""
    hidden = torch.zeros(1, 1500, 512)
    model = load_model(
        whisper_base.decoder(),
        example_inputs=(torch.zeros((1, 8), dtype=torch.int64), hidden),
        dynamic_shapes={"input_ids": {1: torch.export.Dim("length", min=2, max=448)}, "encoder_hidden_states": None},
    )
    PassManager(default_pipeline("onnx")).run(model)
    return model


def measure(
    settings: Sequence[tuple[int, str]], symmetric: bool, data: Path, flite: str, threads: int
) -> Iterator[tuple[Row, float]]:
    """A row for the model as it is, and one for each block size and method; and the divergence."""
    given, measured = utterances(data, flite)
    model = float_model()
    samples = Samples.of(model.graph, [each.inputs for each in given])
    exact: list[Logarithms] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.onnx"
        for block_size, method in ((-1, "float32"), *settings):
            start, now = time.perf_counter(), model.clone()
            if method != "float32":
                chosen = samples if method in ("awq", "auto") else None
                pass_ = QuantizeInt4(
                    method=method,
                    block_size=block_size,
                    symmetric=symmetric,
                    op_types_to_quantize="MatMul+Gemm",
                    samples=chosen,
                )
                PassManager([pass_]).run(now)
            seconds = time.perf_counter() - start
            ir.save(now, path)
            found = predictions(path, measured, threads)
            exact = exact or found
            yield Row(block_size, symmetric, method, perplexity(found, measured), seconds), divergence(found, exact)


def cells(row: Row, rows: Mapping[Row, float]) -> tuple[str, ...]:
    """A row as text."""
    scales, zeros, method, reached, increase, _, seconds = perplexity_cells(row, list(rows))
    if row.method == "float32":
        return scales, zeros, method, reached, "", "", "", ""
    place = row.block_size, row.symmetric
    plain = [found for each, found in rows.items() if (each.method, each.block_size, each.symmetric) == ("rtn", *place)]
    part = f"{rows[row] / plain[0]:.2f}" if plain and row.method != "rtn" else ""
    return scales, zeros, method, reached, increase, f"{rows[row]:.4f}", part, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speech_perplexity", description=SECTION.title)
    parser.add_argument("--data", type=Path, required=True, help="of pocketsphinx: usr/share/pocketsphinx/test/data")
    parser.add_argument("--flite", default="flite", help="the program (default: the one that the PATH has)")
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[64, 128, 0], help="0 is one scale an output")
    parser.add_argument("--methods", nargs="+", default=["rtn", "auto"], choices=METHODS)
    parser.add_argument("--symmetric", action="store_true", help="without zero points")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write the table into RESULTS.md")
    options = parser.parse_args(arguments)
    out, rows = console(), dict[Row, float]()
    settings = [(size, method) for size in options.block_sizes for method in options.methods]
    for row, far in measure(settings, options.symmetric, options.data, options.flite, options.threads):
        rows[row] = far
        out.print(*cells(row, rows))
    table = [cells(row, rows) for row in ordered(list(rows), METHODS)]
    out.print(SECTION.table(table))
    if options.write:
        heading = (
            f"`python -m benchmarks.speech_perplexity`, {time.strftime('%Y-%m-%d')}; {versions('onnxruntime')}.\n"
            f"Five sentences of pocketsphinx-testdata and {_MEASURED} that flite reads are measured; calibration data "
            f"are {_GIVEN}\nsentences that it reads, and five names of cards. Seconds are those of the quantization."
        )
        SECTION.write(SECTION.markdown(heading, table))
        out.print("written to RESULTS.md")


if __name__ == "__main__":
    main()
