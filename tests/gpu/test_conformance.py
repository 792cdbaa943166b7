"""ONNX's node tests on a device: what passes on the CPU without ONNX Runtime passes here, too, or is refused."""

import pytest

from tests.conformance import expected
from tests.conformance.cases import cases, run_case
from tests.conformance.runner import run
from tests.conformance.test_conformance import sample

AT_LEAST = 0.99
"""Of those that pass on the CPU; 90 percent are demanded."""

pytestmark = pytest.mark.filterwarnings("ignore")


def _passing() -> list[str]:
    known = expected.failures("error")
    return [name for name in cases() if name not in known]


@pytest.mark.parametrize("share", range(5))
def test_a_sample_passes(share: int) -> None:
    passing = set(_passing())
    names = [name for name in sample()[share::5] if name in passing]
    outcomes = [run_case(name, "error", "opencl") for name in names]
    assert [outcome for outcome in outcomes if outcome.status != "passed"] == []


@pytest.mark.slow
def test_every_node_test_passes_or_is_refused() -> None:
    outcomes = list(run(_passing(), "error", target="opencl"))
    wrong = [outcome for outcome in outcomes if outcome.status not in ("passed", "refused")]
    assert wrong == []
    assert sum(outcome.status == "passed" for outcome in outcomes) >= AT_LEAST * len(outcomes)
