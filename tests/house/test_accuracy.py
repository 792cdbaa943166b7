"""What the accuracy benchmark counts, and that nothing that calibrates is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import accuracy, accuracy_tasks
from benchmarks.accuracy import SECTION, Row, measure
from benchmarks.accuracy_tasks import Task, edits, lines, paragraphs, reciprocal_ranks
from benchmarks.results import RESULTS
from models.case import ModelCase
from tests.optimizer.build import perceptron

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("found", "right", "count"),
    [("", "", 0), ("kitten", "sitting", 3), ("abc", "", 3), ("", "ab", 2), ("flaw", "lawn", 2)],
)
def test_edits(found: str, right: str, count: int) -> None:
    assert edits(found, right) == count == edits(right, found)


def test_reciprocal_ranks() -> None:
    documents = np.eye(3)
    queries = np.array([[1, 0, 0], [0.8, 0.6, 0], [0.7, 0.7, 0.5]])
    np.testing.assert_allclose(reciprocal_ranks(queries, documents), [1, 1 / 2, 1 / 3])


def test_no_paragraph_is_in_both_halves() -> None:
    even, odd = paragraphs(0), paragraphs(1)
    assert min(len(even), len(odd)) > 300 and not set(even) & set(odd)


def test_lines_are_what_they_say() -> None:
    first, again = lines(1, 4), lines(1, 4)
    for (text, x), (other, y) in zip(first, again, strict=True):
        assert text == other and text.isascii() and x.shape == (1, 3, 48, 320)
        np.testing.assert_array_equal(x, y)
        inside = np.abs(x[0]).max(axis=(0, 1)) > 0
        assert inside[:20].all() and x.min() >= -1 and x.max() <= 1
    assert not {text for text, _ in first} & {text for text, _ in lines(0, 4)}


def test_a_row_for_each_precision() -> None:
    sets = [(RNG.standard_normal((6, 32)).astype(np.float32),) for _ in range(8)]
    right: list[Any] = []

    def judge(run: Any) -> float:
        found = [run(x).argmax(axis=1) for (x,) in sets]
        right[:] = right or found
        return 100 * float(np.mean(np.equal(found, right)))

    case = ModelCase("perceptron", perceptron(), {"x": sets[0][0]})
    task = Task("it tells", "agreement", "%", 0.2, case, sets[:6], judge)
    rows = measure(task, ["int8", "int8-dynamic", "int4", "mixed"], "onnx")
    assert [row.precision for row in rows] == ["float32", "int8", "int8-dynamic", "int4", "mixed"]
    assert rows[0].cells[-2:] == ("", "") and rows[0].score == 100
    assert all(row.constants < rows[0].constants / 2 and 0 <= row.worse < 30 for row in rows[1:])
    assert rows[1].cells[-1] == "0.2%" and rows[3].cells[-1] == ""


def test_the_command_writes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = ModelCase("perceptron", perceptron(), {"x": np.ones((6, 32), np.float32)})
    task = Task("it tells", "agreement", "", 0.005, case, [(np.ones((6, 32), np.float32),)], lambda run: 1.0)
    monkeypatch.setitem(accuracy_tasks.TASKS, "minilm", lambda: task)
    monkeypatch.setattr("benchmarks.accuracy.measure", lambda *_: [Row(task, "int8", 1000, 0.9, 0.1)])
    written: list[str] = []
    monkeypatch.setattr(type(SECTION), "write", lambda self, text: written.append(text))
    accuracy.main(["--tasks", "minilm", "--write"])
    assert "| it tells | agreement | int8 | 1000 B | 0.9000 | 0.1000 | 0.005 |" in written[0]


def test_the_results_have_a_place_for_it() -> None:
    text = RESULTS.read_text()
    assert text.count(SECTION.begin) == text.count(SECTION.end) == 1
