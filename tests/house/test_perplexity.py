from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from benchmarks.perplexity import SECTION, Row, calibration_tokens, cells, main, measured_tokens, perplexity, quantize
from benchmarks.results import RESULTS

WORDS = 32


def saved(folder: Path, table: np.ndarray) -> Path:
    """A model whose logits follow from the last word alone."""
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 23]>
        g (int64[B,S] input_ids, int64[B,S] attention_mask) => (float[B,S,32] logits) {
            e = Gather(identity, input_ids) a = MatMul(e, table)
            m = CastLike(attention_mask, a) one = Constant<value_ints = [-1]>() k = Unsqueeze(m, one)
            logits = Mul(a, k) }""")
    for name, array in (("identity", np.eye(WORDS, dtype=np.float32)), ("table", table)):
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    path = folder / "model.onnx"
    ir.save(model, path)
    return path


def test_one_who_knows_nothing_is_as_perplexed_as_there_are_words(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, WORDS, (3, 10))
    assert perplexity(saved(tmp_path, np.zeros((WORDS, WORDS), np.float32)), tokens, 1) == pytest.approx(WORDS)


def test_one_who_knows_the_next_word_is_not(tmp_path: Path) -> None:
    following = np.roll(np.eye(WORDS, dtype=np.float32), 1, axis=1) * 100
    tokens = (np.arange(10)[None] + np.array([[0], [7]])) % WORDS
    assert perplexity(saved(tmp_path, following), tokens, 1) == pytest.approx(1)


@pytest.mark.parametrize("method", ["rtn", "auto", "nf4", "onnxruntime-rtn", "onnxruntime-gptq"])
def test_contestants_write_a_model_that_runs(method: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    original = saved(tmp_path, rng.normal(size=(WORDS, WORDS)).astype(np.float32))
    tokens = rng.integers(0, WORDS, (4, 10))
    result = tmp_path / "quantized.onnx"
    quantize(original, method, 16, method == "onnxruntime-gptq", tokens, result)
    assert perplexity(result, tokens, 1) == pytest.approx(perplexity(original, tokens, 1), rel=0.1)


@pytest.mark.parametrize("more", [["--block-sizes", "64"], ["--block-sizes", "64", "0", "--symmetric"]])
def test_what_a_peer_cannot_pack_is_refused(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--methods", "onnxruntime-gptq", *more])
    assert "onnxruntime-gptq needs --symmetric, and block sizes that are not 0" in capsys.readouterr().err


def test_the_measured_text_is_not_calibrated_on() -> None:
    tokenizer = Tokenizer(models.WordLevel({}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    from pydoc_data.topics import topics

    words = sorted({word for text in topics.values() for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)})
    tokenizer.model = models.WordLevel({word: index for index, word in enumerate(["?", *words])}, unk_token="?")

    def pieces(tokens: np.ndarray) -> set[bytes]:
        """Every run of 40 words: shorter ones, such as the rule under a heading, can be in both."""
        return {text[start : start + 40].tobytes() for text in tokens for start in range(len(text) - 40)}

    given, measured = calibration_tokens(tokenizer), measured_tokens(tokenizer)
    assert not pieces(given) & pieces(measured)
    assert len(pieces(given)) > 1000


def test_a_row_stands_beside_rtn_and_the_baseline() -> None:
    rows = [
        Row(-1, True, "float32", 10.0, 0.0),
        Row(64, False, "rtn", 14.0, 1.0),
        Row(64, False, "auto", 11.0, 60.0),
        Row(64, True, "auto", 12.0, 60.0),
    ]
    assert cells(rows[0], rows)[3:] == ("10.000", "", "", "")
    assert cells(rows[1], rows) == ("64 weights", "yes", "rtn", "14.000", "4.000", "", "1")
    assert cells(rows[2], rows) == ("64 weights", "yes", "auto", "11.000", "1.000", "0.25", "60")
    assert cells(rows[3], rows)[5] == ""
    assert all(len(cells(row, rows)) == len(SECTION.columns) for row in rows)


def test_what_is_kept_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row(-1, True, "float32", 2.0, 0.0), Row(64, False, "nf4", 2.5, 7.0)]
    (tmp_path / "rows").write_text(json.dumps([asdict(row) for row in rows]))
    main(["--keep", str(tmp_path / "rows"), "--block-sizes", "64", "--methods", "nf4"])
    (line,) = [line.split() for line in capsys.readouterr().out.splitlines() if "nf4" in line]
    assert [word for word in line if word.strip("|│")][-3:] == ["2.500", "0.500", "7"]


def test_normal_floats_have_no_zero_points() -> None:
    rows = [Row(-1, True, "float32", 2.0, 0.0), Row(64, False, "nf4", 2.5, 7.0)]
    assert cells(rows[1], rows)[:3] == ("64 weights", "no", "nf4")


def test_the_results_have_a_place_for_the_table() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    assert text.index(SECTION.begin) < text.index(SECTION.end)
