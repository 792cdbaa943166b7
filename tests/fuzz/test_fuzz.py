"""Mutated model files never crash the process, hang it, or raise what is not ours."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError

from optimizer import optimize
from tests.fuzz.mutants import mutant
from tests.fuzz.runner import GOOD, Case, Check, Kind, run
from tests.fuzz.seeds import seeds


def bad(cases: list[Case], jobs: int = 1) -> list[str]:
    outcomes = list(run(cases, jobs))
    assert [outcome.case for outcome in outcomes] == cases
    return [str(outcome) for outcome in outcomes if outcome.kind not in GOOD]


def test_the_seeds_are_valid() -> None:
    for data in seeds().values():
        onnx.checker.check_model(data, full_check=True)


def unharmed(case: Case, folder: Path) -> tuple[Kind, str]:
    compiled = optimize(onnx.load_model_from_string(seeds()[sorted(seeds())[case.seed]]), target=case.target)
    return ("accepted", "") if compiled.outputs else ("refused", "")


@pytest.mark.parametrize("target", ["onnx", "cpu"])
def test_the_seeds_are_accepted(target: str) -> None:
    cases = [Case(index, target) for index in range(len(seeds()))]
    outcomes = list(run(cases, jobs=1, check=unharmed))
    assert [outcome for outcome in outcomes if outcome.kind != "accepted"] == []


def test_mutants_are_the_same_each_time_and_differ_from_their_seed() -> None:
    for seed in range(200):
        story, data = mutant(seed)
        assert mutant(seed) == (story, data)
    changed = [mutant(seed)[1] not in seeds().values() for seed in range(200)]
    assert sum(changed) > 180


def test_most_mutants_are_still_files_that_a_parser_reads() -> None:
    readable = 0
    for seed in range(200):
        try:
            onnx.load_model_from_string(mutant(seed)[1])
            readable += 1
        except DecodeError:
            continue
    assert 100 < readable < 200


def test_a_hundred_and_twenty_mutants_to_onnx() -> None:
    assert bad([Case(seed, "onnx") for seed in range(120)]) == []


def test_thirty_mutants_to_the_cpu() -> None:
    assert bad([Case(seed, "cpu") for seed in range(10_000, 10_030)]) == []


@pytest.mark.slow
def test_five_thousand_mutants() -> None:
    assert bad([Case(seed, "cpu" if seed % 10 == 0 else "onnx") for seed in range(5000)], jobs=2) == []


def crash_at_one(case: Case, folder: Path) -> tuple[Kind, str]:
    assert not list(folder.iterdir())
    (folder / "file").write_text("")
    if case.seed == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    return "accepted", ""


def hang_at_one(case: Case, folder: Path) -> tuple[Kind, str]:
    if case.seed == 1:
        time.sleep(1000)
    return "refused", "no"


@pytest.mark.parametrize(
    ("check", "kinds", "detail"),
    [
        (crash_at_one, ["accepted", "crash", "accepted"], "exit code -11"),
        (hang_at_one, ["refused", "hang", "refused"], "no answer within 2 seconds"),
    ],
)
def test_a_crash_and_a_hang_are_counted_and_the_rest_goes_on(check: Check, kinds: list[Kind], detail: str) -> None:
    outcomes = list(run([Case(seed, "onnx") for seed in range(3)], jobs=1, check=check, patience=2))
    assert [outcome.kind for outcome in outcomes] == kinds
    assert outcomes[1].detail == detail
    assert "seed 1 to onnx" in str(outcomes[1])
