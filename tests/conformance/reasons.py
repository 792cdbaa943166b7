"""From an outcome to the reason under which it is listed: one sentence for all tests that fail for the same cause."""

from __future__ import annotations

import re

from tests.conformance.cases import Outcome

_REFUSALS = (
    (r"Could not find an implementation for (\w+)\((\d+)\)", r"ONNX Runtime does not implement \1 of opset \2"),
    (r"Fatal error: ([\w.:]+)\(-?\d+\) is not a registered", r"ONNX Runtime does not know \1"),
    (r"Type '([^']+)' of input parameter .* of operator \((\w+)\)", r"ONNX Runtime has no \2 of \1"),
    (r"string_normalizer", "ONNX Runtime's StringNormalizer needs a locale that the machine lacks"),
    (r"Status Message: (\w+ is not defined for .*)$", r"ONNX Runtime: \1"),
)
"""What the error says -> the reason."""

_DIFFERENCES = (
    (r"test_(bernoulli|training_dropout)", "The test expects the random numbers of numpy's generator"),
    (r"test_dft_inverse_opset19", "The expected zero is 2e-7, the rounding error of the FFT that made the test"),
    (r"test_(dft|stft)", "The expected zeros are exact; ONNX Runtime's transform has rounding errors above 1e-7"),
    (r"test_loop16_seq_none", "onnx's own comparison does not take scalars in a sequence"),
    (r"test_.*fp16.*", "float16 intermediates of an expanded function are rounded elsewhere than in the reference"),
)
"""The test's name -> why its results differ."""


def reason(outcome: Outcome) -> str:
    """Why a test fails, in words that tests with the same cause share."""
    if outcome.status == "wrong":
        return next((why for name, why in _DIFFERENCES if re.match(name, outcome.name)), f"wrong: {outcome.detail}")
    for said, why in _REFUSALS:
        match = re.search(said, outcome.detail)
        if match:
            return match.expand(why)
    text = re.sub(r"^node '[^']*': ", "", outcome.detail)
    text = re.sub(r"; allow fallback='onnxruntime' to run it there$", "", text)
    text = re.sub(r" \(and \d+ more nodes\)$", "", text)
    text = re.sub(r"input '[^']*'", "input", text)
    return text if outcome.status == "refused" else f"{outcome.status}: {text}"
