"""A few generated graphs through `optimize`; `python -m tests.generated` takes thousands."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from optimizer import optimize
from optimizer.errors import VerificationError
from tests.generated import batch
from tests.generated.__main__ import run_batch


def test_a_small_batch() -> None:
    outcome = run_batch(123, 12)
    assert (outcome.kind, outcome.total) == ("good", 12), outcome.detail
    assert outcome.compared > 0


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[N,3] x) => (float[N,3] y) { a = Neg(x) y = Relu(a) }'
    assert batch.check(ir.from_onnx_text(text))

    class Wrong:
        def __init__(self, compiled: object) -> None:
            self.report = compiled.report  # type: ignore[attr-defined]
            self._compiled = compiled

        def __call__(self, x: object) -> object:
            return self._compiled(x) + 1  # type: ignore[operator]

    real = optimize
    monkeypatch.setattr("tests.generated.batch.optimize", lambda *args, **options: Wrong(real(*args, **options)))
    with pytest.raises((AssertionError, VerificationError), match="relative error"):
        batch.check(ir.from_onnx_text(text))
