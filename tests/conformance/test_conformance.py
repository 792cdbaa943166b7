"""A sample of ONNX's node tests; `python -m tests.conformance` runs all of them, as does the slow test."""

from __future__ import annotations

import hashlib

import pytest

from tests.conformance import expected
from tests.conformance.cases import FALLBACKS, Fallback, Outcome, cases, run_case
from tests.conformance.reasons import reason
from tests.conformance.runner import run

SAMPLE = 50
AT_LEAST: dict[Fallback, int] = {"onnxruntime": 1405, "error": 1000}
"""What ONNX Runtime 1.31.1 passes alone, and what must not need it."""

pytestmark = pytest.mark.filterwarnings("ignore")


def sample() -> list[str]:
    """Tests of different operators, picked by the hash of their names."""
    ordered = sorted(cases(), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    first: dict[str, str] = {}
    for name in ordered:
        first.setdefault(cases()[name].model.graph.node[0].op_type, name)
    return list(first.values())[:SAMPLE]


@pytest.mark.parametrize("fallback", FALLBACKS)
@pytest.mark.parametrize("share", range(5))
def test_a_sample_behaves_as_listed(fallback: Fallback, share: int) -> None:
    names = sample()[share::5]
    assert len(names) == SAMPLE // 5
    assert [text for name in names if (text := expected.surprise(run_case(name, fallback), fallback))] == []


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_the_list_names_tests_that_exist_and_leaves_enough(fallback: Fallback) -> None:
    known = expected.failures(fallback)
    assert set(known) <= set(cases())
    assert len(cases()) - len(known) >= AT_LEAST[fallback]
    assert all(len(why) > 10 for why in known.values())


def test_tests_that_fail_for_one_cause_share_a_reason() -> None:
    rest = "there is no emitter for it{}; allow fallback='onnxruntime' to run it there"
    why, other = f"node 'a': {rest.format(' (and 2 more nodes)')}", f"node 'b': {rest.format('')}"
    assert reason(Outcome("x", "refused", why)) == reason(Outcome("y", "refused", other))


@pytest.mark.slow
@pytest.mark.parametrize("fallback", FALLBACKS)
def test_every_node_test_behaves_as_listed(fallback: Fallback) -> None:
    outcomes = list(run(list(cases()), fallback))
    assert [text for outcome in outcomes if (text := expected.surprise(outcome, fallback))] == []
    assert sum(outcome.status == "passed" for outcome in outcomes) >= AT_LEAST[fallback]
