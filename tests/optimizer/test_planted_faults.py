"""Each of twelve faults is caught, named, taken back and bisected; a check of the last result alone misses half."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimizer.bisection import bisect
from optimizer.comparison import Tolerance
from optimizer.errors import PassError, TersorError
from optimizer.ir.fingerprint import fingerprint
from optimizer.pass_check import Breach, run_and_check
from optimizer.pass_manager import PassManager
from optimizer.reference import Case, Oracle, run_reference
from optimizer.verify_each import VerifyEach
from passes.eliminate_identities import EliminateIdentities
from passes.remove_unused import RemoveUnused
from tests.optimizer.faulty_passes import FAULTS, Fault, model

GOOD = (RemoveUnused(), EliminateIdentities())

every_fault = pytest.mark.parametrize("fault", FAULTS, ids=[fault.pass_.name for fault in FAULTS])


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(model(), seed=0, other_sizes=True)


@every_fault
def test_it_is_caught_named_taken_back_and_saved(fault: Fault, oracle: Oracle, tmp_path: Path) -> None:
    changed = model()
    with VerifyEach(oracle, tmp_path) as guard:
        PassManager([GOOD[0], fault.pass_, GOOD[1]]).run(changed, guard=guard)
    (found,) = guard.faults
    assert (found.pass_name, found.kind) == (fault.pass_.name, fault.kind)
    assert fault.node in found.node
    assert bool(fault.node) == bool(found.node)
    expected = model()
    PassManager(GOOD).run(expected)
    assert fingerprint(changed) == fingerprint(expected)
    (note,) = guard.notes
    assert fault.pass_.name in note
    assert "rolled back" in note
    _check_saved(fault, tmp_path / fault.pass_.name)


def _check_saved(fault: Fault, folder: Path) -> None:
    """The saved model is small, runs, gives the saved outputs, and shows the fault on the saved inputs."""
    facts = json.loads((folder / "fault.json").read_text())
    assert facts["pass"] == fault.pass_.name
    assert facts["nodes_to_show_it"] <= fault.most_nodes
    proto = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    small = ir.from_proto(proto)
    data = folder / "test_data_set_0"
    inputs = [_read(data / f"input_{i}.pb") for i in range(len(small.graph.inputs))]
    outputs = [_read(data / f"output_{i}.pb") for i in range(len(small.graph.outputs))]
    for found, expected in zip(run_reference(small, inputs), outputs, strict=True):
        np.testing.assert_array_equal(found, expected)
    breach = run_and_check(fault.pass_, small, [Case(inputs, outputs)], Tolerance.of(small))[1]
    assert isinstance(breach, Breach)
    assert breach.kind == fault.kind or {breach.kind, fault.kind} == {"values", "invalid"}


def _read(path: Path) -> np.ndarray:
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


@every_fault
def test_bisecting_names_the_pass_and_the_node(fault: Fault, oracle: Oracle) -> None:
    found = bisect(model(), [GOOD[0], fault.pass_, GOOD[1]], oracle).fault
    assert found is not None
    assert (found.pass_name, found.kind) == (fault.pass_.name, fault.kind)
    assert fault.node in found.node


def test_bisecting_a_sound_pipeline_finds_nothing(oracle: Oracle) -> None:
    found = bisect(model(), GOOD, oracle)
    assert found.fault is None
    assert found.runs == 1


def test_the_final_check_alone_misses_half_of_them(oracle: Oracle) -> None:
    seen = []
    for fault in FAULTS:
        changed = model()
        try:
            PassManager([fault.pass_]).run(changed)
            names_kept = [value.name for value in changed.graph.outputs]
            outputs = run_reference(changed, oracle.inputs)
            seen.append(not oracle.compare(outputs).passed and bool(names_kept))
        except PassError:
            seen.append(False)  # it fails loudly without any check
        except TersorError:
            seen.append(True)
    assert seen == [fault.final_sees_it for fault in FAULTS]
    assert sum(seen) <= len(FAULTS) // 2
