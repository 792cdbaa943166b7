"""The benchmark of Whisper's decoder: what it counts, and where its text comes from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks.perplexity import Row, divergence
from benchmarks.results import RESULTS
from benchmarks.speech_perplexity import (
    SECTION,
    Utterance,
    cells,
    perplexity,
    predictions,
    sentences,
    speak,
    transcripts,
)

WORDS = 8


def model(folder: Path, table: np.ndarray) -> Path:
    """Logits follow from the last token alone."""
    made = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 23]>
        g (int64[B,S] input_ids, float[B,T,4] encoder_hidden_states) => (float[B,S,8] logits) {
            e = Gather(table, input_ids) n = ReduceSum(encoder_hidden_states) z = Mul(n, n) logits = Add(e, z) }""")
    value = next(v for node in made.graph for v in node.inputs if v is not None and v.name == "table")
    value.const_value = ir.tensor(table.astype(np.float32), name="table")
    made.graph.register_initializer(value)
    ir.save(made, folder / "model.onnx")
    return folder / "model.onnx"


def test_only_what_was_said_counts(tmp_path: Path) -> None:
    """The token after 0 and 1 is sure, those before them are not to be known."""
    table = np.zeros((WORDS, WORDS))
    table[[0, 1, 2], [1, 2, 3]] = 50
    said = Utterance(np.ones((1, 2, 4), np.float32), [7, 7, 0, 1, 2, 3], prefix=3)
    assert said.targets.tolist() == [1, 2, 3]
    found = predictions(model(tmp_path, table), [said], 1)
    assert perplexity(found, [said]) == pytest.approx(1)
    longer = Utterance(np.ones((1, 2, 4), np.float32), [7, 7, 0, 1, 2, 3], prefix=2)
    assert perplexity(predictions(model(tmp_path, table), [longer], 1), [longer]) == pytest.approx(WORDS**0.25)


def test_the_divergence() -> None:
    right, other = np.log(np.array([[0.5, 0.25, 0.25]])), np.log(np.array([[0.25, 0.5, 0.25]]))
    assert divergence([right, other], [right, other]) == 0
    assert divergence([other], [right]) == pytest.approx(0.25 * np.log(2))


def test_a_row_stands_beside_rtn() -> None:
    rows = {Row(-1, False, "float32", 2.0, 0.0): 0.0, Row(64, False, "rtn", 2.5, 1.0): 0.2,
            Row(64, False, "auto", 2.1, 9.0): 0.05}  # fmt: skip
    table = [cells(row, rows) for row in rows]
    assert table[0][2:] == ("float32", "2.000", "", "", "", "")
    assert table[1] == ("64 weights", "yes", "rtn", "2.500", "0.500", "0.2000", "", "1")
    assert table[2] == ("64 weights", "yes", "auto", "2.100", "0.100", "0.0500", "0.25", "9")
    assert all(len(row) == len(SECTION.columns) for row in table)


def test_transcripts(tmp_path: Path) -> None:
    (tmp_path / "said").write_text("<s> ten of clubs  </s> (001)\n\n<s> five five </s> (a-2)\n")
    assert transcripts(tmp_path, "said") == {"001": "ten of clubs", "a-2": "five five"}


def test_what_is_learned_from_is_not_measured() -> None:
    given, measured = sentences(0), sentences(1)
    assert min(len(given), len(measured)) >= 32 and not {*given} & {*measured}
    assert not any(mark in text for text in given + measured for mark in "_=`0123456789\n")


def test_a_sentence_is_read(tmp_path: Path) -> None:
    program, sound = tmp_path / "flite", tmp_path / "sound"
    program.write_text('#!/bin/sh\necho "$2: $4" > "$6"; test "$2" = slt\n')
    program.chmod(0o755)
    speak(str(program), "slt", "It's so.", sound)
    assert sound.read_text() == "slt: It's so.\n"
    with pytest.raises(subprocess.CalledProcessError):
        speak(str(program), "nobody", "It's so.", sound)


def test_the_results_have_a_place_for_the_table() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert text.index(SECTION.begin) < text.index(SECTION.end)
