"""The contest of a policy with uniform models, on a small one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks import mixed_precision
from benchmarks.mixed_precision import SECTION, Contest, measure
from benchmarks.results import RESULTS
from optimizer.calibration import Samples
from optimizer.reference import run_reference
from passes.quantization.policy_search import relative_error
from tests.passes.int4_graphs import model_of

RNG = np.random.default_rng(0)


def contest() -> Contest:
    text = "g (float[N,256] x) => (float[N,64] y) { h = MatMul(x, a)  r = Relu(h)  y = MatMul(r, b) }"
    weights = {
        "a": (RNG.standard_normal((256, 256)) / 16).astype(np.float32),
        "b": (RNG.standard_normal((256, 64)) / 16).astype(np.float32),
    }
    model = model_of(text, weights)
    sets = [RNG.standard_normal((32, 256)).astype(np.float32) for _ in range(8)]

    def judge(of: ir.Model) -> tuple[float, None]:
        return relative_error([run_reference(of, [x]) for x in sets], [run_reference(model, [x]) for x in sets]), None

    forms = ("float32", "int8-dynamic", "int4-32", "int4-64", "int4-128", "int4")
    return Contest(model, Samples.of(model.graph, sets), "MatMul+Gemm", forms, "relative error", judge)


def test_a_policy_has_the_bits_of_a_uniform_model() -> None:
    rows = list(measure(contest(), "rtn"))
    assert [row.bits for row in rows[:4]] == pytest.approx([32, 4.5, 4.5625, 4.3125], abs=1e-3)
    assert rows[0].loses == 0 < rows[1].loses
    assert rows[4].bits <= 4.5 and rows[5].bits <= 4.3125 + 1e-6
    assert rows[4].loses < rows[1].loses and rows[5].loses <= rows[3].loses * 1.01


def test_the_command_writes_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mixed_precision.MODELS, "minilm", lambda folder: contest())
    written: list[str] = []
    monkeypatch.setattr(type(SECTION), "write", lambda self, text: written.append(text))
    mixed_precision.main(["--models", "minilm", "--method", "rtn", "--write"])
    assert "| minilm | PrecisionPolicy(max_bits=4.5) |" in written[0]


def test_the_results_have_a_place_for_it() -> None:
    text = RESULTS.read_text()
    assert text.count(SECTION.begin) == text.count(SECTION.end) == 1
