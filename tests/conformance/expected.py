"""The known failures with a reason for each, in `expected_failures.json`: fallback -> reason -> names of tests.

Tests whose reason is one of `CHANCE` fail on one machine or one run and pass on another; both are expected.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.conformance.cases import Fallback, Outcome
from tests.conformance.reasons import reason

CHANCE = (
    "The test expects the random numbers of numpy's generator",
    "ONNX Runtime's StringNormalizer needs a locale that the machine lacks",
)
PATH = Path(__file__).parent / "expected_failures.json"


def failures(fallback: Fallback) -> dict[str, str]:
    """Test -> why it fails."""
    return {name: why for why, names in _load().get(fallback, {}).items() for name in names}


def surprise(outcome: Outcome, fallback: Fallback) -> str:
    """What is unexpected of an outcome; empty if nothing is. A failure that is gone is unexpected, too."""
    known = failures(fallback).get(outcome.name)
    if (outcome.status == "passed") == (known is None) or known in CHANCE:
        return ""
    if outcome.status == "passed":
        return f"{outcome.name} passes now: write the list again with `python -m tests.conformance --update`"
    return f"{outcome.name} {outcome.status}: {outcome.detail}"


def update(fallback: Fallback, outcomes: Sequence[Outcome]) -> None:
    """Write what these outcomes say of their tests; other tests stay as they are listed."""
    ran = {outcome.name for outcome in outcomes}
    why = {name: text for name, text in failures(fallback).items() if name not in ran}
    why |= {outcome.name: reason(outcome) for outcome in outcomes if outcome.status != "passed"}
    grouped: dict[str, list[str]] = defaultdict(list)
    for name in sorted(why):
        grouped[why[name]].append(name)
    content = {**_load(), fallback: dict(sorted(grouped.items()))}
    PATH.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    _load.cache_clear()


@cache
def _load() -> dict[str, dict[str, list[str]]]:
    content: dict[str, dict[str, list[str]]] = json.loads(PATH.read_text()) if PATH.exists() else {}
    return content
