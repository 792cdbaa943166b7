"""`precision="float16"` on OpenCL: whole models, and numbers that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer import optimize
from optimizer.errors import VerificationError
from tests.models.test_models import tiny_cases
from tests.passes.transform import read


@pytest.mark.parametrize("name", ["bert", "llama", "resnet", "whisper"])
def test_families(name: str) -> None:
    case = tiny_cases()[name]
    given = case.example_inputs
    compiled = optimize(
        case.model, "opencl", precision="float16", example_inputs=given, fallback="error", progress=False
    )
    found = compiled.report.verification
    assert found.error is not None and found.tolerance is not None
    assert 1e-5 < found.error < found.tolerance < 0.03


def test_numbers_beyond_the_range_are_an_error_that_names_the_remedy() -> None:
    model = read(
        "g (float[4,4] x) => (float[4,4] y) <float s = {60000}> { a = Mul(x, s) b = Mul(a, s) y = MatMul(b, b) }"
    )
    with pytest.raises(VerificationError, match=r"65,504: precision='bfloat16' has the range"):
        optimize(model, "opencl", precision="float16", progress=False)


def test_a_row_that_is_masked_throughout() -> None:
    model = read("""g (float[4,8] x, bool[4,4] c) => (float[4,4] y) <float zero = {0}, float least = {-3.4e38}> {
        t = Transpose(x) a = MatMul(x, t) m = Where(c, zero, least) s = Add(a, m) p = Softmax(s) y = MatMul(p, a) }""")
    x, seen = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32), np.tri(4, k=-1).astype(bool)
    compiled = optimize(model, "opencl", precision="float16", example_inputs=(x, seen), progress=False)
    assert np.isfinite(compiled(x, seen)).all()
