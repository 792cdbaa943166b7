"""ONNX's node tests on a device: what passes on the CPU without ONNX Runtime passes here, too, or is refused."""

import pytest

from benchmarks.results import RESULTS
from tests.conformance.cases import Outcome, run_case
from tests.conformance.runner import run
from tests.conformance.test_conformance import sample
from tests.gpu.node_tests import SECTION, cells, passing

AT_LEAST = 0.99
"""Of those that pass on the CPU; 90 percent are demanded."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("share", range(5))
def test_a_sample_passes(share: int) -> None:
    known = set(passing())
    names = [name for name in sample()[share::5] if name in known]
    outcomes = [run_case(name, "error", "opencl") for name in names]
    assert [outcome for outcome in outcomes if outcome.status != "passed"] == []


@pytest.mark.slow
def test_every_node_test_passes_or_is_refused() -> None:
    outcomes = list(run(passing(), "error", target="opencl"))
    wrong = [outcome for outcome in outcomes if outcome.status not in ("passed", "refused")]
    assert wrong == []
    assert sum(outcome.status == "passed" for outcome in outcomes) >= AT_LEAST * len(outcomes)


def test_the_counts_have_a_place_in_the_results() -> None:
    text = RESULTS.read_text()
    assert text.count(SECTION.begin) == text.count(SECTION.end) == 1


def test_counts() -> None:
    found = [*(Outcome(str(i), "passed") for i in range(8)), Outcome("8", "refused"), Outcome("9", "crashed")]
    assert cells("opencl", found, 3.2) == ("opencl", "10", "8", "1", "1", "80.0%", "3 s")
