"""From an outcome to the reason under which it is listed."""

from __future__ import annotations

import re

from tests.conformance.cases import Outcome


def reason(outcome: Outcome) -> str:
    """Why a test fails, in words that tests with the same cause share."""
    text = re.sub(r"^node '[^']*': ", "", outcome.detail)
    text = re.sub(r"; allow fallback='onnxruntime' to run it there$", "", text)
    text = re.sub(r" \(and \d+ more nodes\)$", "", text)
    return f"{outcome.status}: {text}" if outcome.status != "refused" else text
