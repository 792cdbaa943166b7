"""`tune`: how its limit is written, what is kept, what wins, and that the time is kept to."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

from backends.relax.tuning import Tunable, Tuner, gain
from optimizer import Report, optimize
from optimizer.cache import open_store
from optimizer.cache.store import TUNING_FOLDER, Store
from optimizer.cache.winners import Winner, Winners
from optimizer.cli import main
from optimizer.errors import CompileError, InputError
from optimizer.target import Target, detect_cpu
from optimizer.tuning import Change, Decision, Tuning, parse_tune
from tests.backends.running import parse

HERE = Target.parse("cpu")
KEY = "panel 48x64x96"
SECONDS = {16: 0.004, 32: 0.002, 48: 0.004}
"""Of a run of `Fake`, by the value of its choice."""


def product(name: str = "g") -> onnx.ModelProto:
    weights = np.random.default_rng(3).standard_normal((64, 96)).astype(np.float32)
    return parse(f"{name} (float[48,64] x) => (float[48,96] y) {{ t = MatMul(x, w) y = Relu(t) }}", {"w": weights})


def widths(compiled: Any) -> list[int]:
    """Of the panels of its packed weights."""
    return [spec.shape[-1] for spec in compiled._executable._plan.weights]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("2m", 120.0), ("2 min", 120.0), (" 0.5s ", 0.5), ("7", 7.0), (30, 30.0)]
)
def test_how_a_limit_is_written(text: object, seconds: float) -> None:
    assert parse_tune(text, HERE) == seconds


@pytest.mark.parametrize("text", [0, -1, True, "", "s", "30 hours", "0s", "-3s", "1e3s", float("nan"), [30], b"30s"])
def test_what_is_no_time_is_refused(text: object) -> None:
    with pytest.raises(InputError, match="tune must be a time such as '30s', '2m' or 30"):
        parse_tune(text, HERE)


def test_nothing_is_tuned_by_default() -> None:
    assert parse_tune(None, Target.parse("onnx"), "1MB") is None


@pytest.mark.parametrize("target", ["onnx", "cpu:x86-64-v3"])
def test_only_this_machine_can_be_measured(target: str) -> None:
    with pytest.raises(InputError, match=f"not for target '{target}'; use target='cpu'"):
        optimize(product(), target, tune="1s")


def test_a_memory_budget_does_not_go_with_it() -> None:
    with pytest.raises(InputError, match="tune='1s' and memory_budget='1MB' do not go together"):
        optimize(product(), tune="1s", memory_budget="1MB")


def test_the_command_line_has_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(product(), tmp_path / "model.onnx")
    assert main(["optimize", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "m.tersor"), "--tune", "never"]) == 2
    assert "tune must be a time" in capsys.readouterr().err


def winners(folder: Path, precision: str = "float32", limit: int | None = None) -> Winners:
    return Winners(Store(folder, limit), detect_cpu(), precision)


def test_winners_are_kept_for_their_machine_and_precision(tmp_path: Path) -> None:
    kept = Winner(32, 0.9, (48, 32))
    assert winners(tmp_path).keep({KEY: kept})
    assert winners(tmp_path).known == {KEY: kept}
    assert winners(tmp_path, "bfloat16").known == {}
    more = replace(detect_cpu(), cores=detect_cpu().cores + 1)
    assert Winners(Store(tmp_path), more, "float32").known == {}


def test_winners_of_another_process_stay(tmp_path: Path) -> None:
    one, other = winners(tmp_path), winners(tmp_path)
    one.keep({"a": Winner(1, 1.0, ())})
    other.keep({"b": Winner(2, 1.0, ())})
    assert set(winners(tmp_path).known) == {"a", "b"}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"format": 2, "winners": {}}', '{"format": 1, "winners": {"a": {"value": "x"}}}']
    + [
        f'{{"format": 1, "winners": {{"a": {{"value": {v}, "ratio": {r}, "tried": {t}}}}}}}'
        for v, r, t in [("1", "0", "[]"), ("1", "NaN", "[]"), ("Infinity", "1", "[]"), ("1", "1", "3")]
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(tmp_path: Path, content: str) -> None:
    (path,) = _kept(tmp_path, {KEY: Winner(1, 1.0, ())})
    path.write_text(content)
    assert winners(tmp_path).known == {}
    assert _kept(tmp_path, {KEY: Winner(2, 1.0, ())}) == [path]
    assert winners(tmp_path).known == {KEY: Winner(2, 1.0, ())}


def _kept(folder: Path, new: dict[str, Winner]) -> list[Path]:
    assert winners(folder).keep(new)
    return list((folder / TUNING_FOLDER).iterdir())


def test_without_a_cache_nothing_is_kept(tmp_path: Path) -> None:
    own = Winners(None, detect_cpu(), "float32")
    assert not own.keep({KEY: Winner(1, 1.0, ())})
    assert own.known == {KEY: Winner(1, 1.0, ())}


def test_the_limit_of_the_cache_holds_for_them(tmp_path: Path) -> None:
    assert not winners(tmp_path, limit=10).keep({KEY: Winner(1, 1.0, ())})
    assert winners(tmp_path).known == {}


def test_they_go_when_the_cache_is_cleared(tmp_path: Path) -> None:
    (path,) = _kept(tmp_path, {KEY: Winner(1, 1.0, ())})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 or os.name == "nt"
    assert main(["cache", "clear", "--folder", str(tmp_path)]) == 0
    assert not path.exists()


class Fake:
    """A model of three kernels: two with the same choice, and one that takes the rest of the time."""

    def __init__(self, values: dict[str, int], seconds: dict[int, float], whole: dict[int, float]) -> None:
        self.value = values.get(KEY, 16)
        self.seconds, self.whole = seconds, whole

    @property
    def decisions(self) -> list[Decision]:
        return [Decision(KEY, self.value, dict.fromkeys(self.seconds, 1.0), ("a", "b"))]

    def kernel_seconds(self, _inputs: object, _threads: int) -> list[tuple[tuple[str, ...], float]]:
        own = self.seconds[self.value] / 2
        return [(("a",), own), (("b", "c"), own), (("d",), self.whole[self.value])]

    def run(self, _inputs: object, _threads: int) -> list[Any]:
        time.sleep(0.0005)
        return []


def tuner(
    folder: Path, *, limit: float = 60.0, whole: dict[int, float] | None = None, on_compile: Callable[[], object] = int
) -> tuple[Tuner, Callable[[], tuple[Fake, Tuning]]]:
    known = winners(folder)

    def compiled(values: dict[str, int]) -> Tunable:
        on_compile()
        return cast(Tunable, Fake(values, SECONDS, whole or SECONDS))

    search = Tuner(limit, known, compiled, [], 1, lambda _: None)

    def tune() -> tuple[Fake, Tuning]:
        before = Fake({key: w.value for key, w in known.known.items()}, SECONDS, whole or SECONDS)
        after, tuning = search.tune(cast(Tunable, before), 0.001)
        return cast(Fake, after), tuning

    return search, tune


def test_the_fastest_value_wins_and_is_known_next_time(tmp_path: Path) -> None:
    _, tune = tuner(tmp_path)
    after, tuning = tune()
    assert after.value == 32
    assert (tuning.decisions, tuning.known, tuning.measured, tuning.left) == (1, 0, 2, 0)
    assert tuning.changes == (Change(KEY, 16, 32, 1.0, 0.5, 2),)
    assert tuning.ratio is not None and tuning.ratio < 0.9
    again, second = tuner(tmp_path)[1]()
    assert again.value == 32
    assert (second.known, second.measured, second.ratio, second.changes) == (1, 0, None, tuning.changes)


def test_winners_that_make_the_model_no_faster_are_forgotten(tmp_path: Path) -> None:
    search, tune = tuner(tmp_path, whole={16: 0.001, 32: 0.004, 48: 0.001})
    after, tuning = tune()
    assert after.value == 16
    assert (tuning.ratio, tuning.changes) == (None, ())
    assert search.winners.known == winners(tmp_path).known == {KEY: Winner(16, 1.0, (32, 48))}


def test_noise_is_no_gain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SECONDS, 32, 0.98 * SECONDS[16])
    after, tuning = tuner(tmp_path)[1]()
    assert (after.value, tuning.measured, tuning.changes) == (16, 2, ())


def test_the_time_is_kept_to(tmp_path: Path) -> None:
    limit = 3.0
    after, tuning = tuner(tmp_path, limit=limit, on_compile=lambda: time.sleep(1.1))[1]()
    assert tuning.seconds < 1.1 * limit
    assert (after.value, tuning.measured, tuning.left) == (32, 1, 1)


def test_too_little_time_is_told(tmp_path: Path) -> None:
    after, tuning = tuner(tmp_path, limit=0.001)[1]()
    assert (after.value, tuning.measured, tuning.left) == (16, 0, 2)
    assert "too little time: this model takes" in str(tuning)
    assert winners(tmp_path).known == {}


def test_an_interrupt_leaves_what_was_measured(tmp_path: Path) -> None:
    calls: list[None] = []

    def second_time() -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuner(tmp_path, on_compile=second_time)[1]()
    assert winners(tmp_path).known == {KEY: Winner(32, 0.5, (32,), confirmed=False)}


def test_a_winner_that_was_not_confirmed_is_not_used_but_measured_again(tmp_path: Path) -> None:
    unsure = winners(tmp_path)
    unsure.keep({KEY: Winner(32, 0.5, (32, 48), confirmed=False)})
    assert winners(tmp_path).values == {}
    after, tuning = tuner(tmp_path)[1]()
    assert (after.value, tuning.measured) == (32, 0)
    assert winners(tmp_path).values == {KEY: 32}


def test_luck_is_not_confirmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice() -> None:
        compiled.append(None)
        if len(compiled) == 3:  # both alternatives were tried
            monkeypatch.setitem(SECONDS, 32, SECONDS[16])

    compiled: list[None] = []
    after, tuning = tuner(tmp_path, on_compile=twice)[1]()
    assert (after.value, tuning.ratio, tuning.changes) == (16, None, ())
    assert winners(tmp_path).known == {KEY: Winner(16, 1.0, (32, 48))}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0] * 9, [0.8] * 9, 0.8),
        ([1.0] * 5 + [3.0] * 4, [1.0] * 9, 1.0),  # others disturbed the first in four rounds of nine
        ([3.0] * 9, [1.0] * 6 + [6.0] * 3, 1.0),  # slower in a third of the rounds
        ([1.0] + [2.0] * 8, [0.95] * 9, 0.95),  # nobody was disturbed in the shortest
        ([0.0] * 9, [0.0] * 9, 1.0),
    ],
)
def test_what_counts_as_a_gain(before: list[float], after: list[float], expected: float) -> None:
    assert gain(before, after) == expected


def test_an_alternative_that_cannot_be_compiled_is_told_and_not_tried_again(tmp_path: Path) -> None:
    def failing() -> None:
        raise CompileError("too wide")

    after, tuning = tuner(tmp_path, on_compile=failing)[1]()
    assert after.value == 16
    assert "could not be compiled: too wide" in tuning.note
    assert winners(tmp_path).known[KEY].tried == (32, 48)


def test_a_model_is_tuned_and_its_report_tells(tmp_path: Path) -> None:
    compiled = optimize(product(), tune=120, cache=tmp_path, progress=False)
    tuning = compiled.report.tuning
    assert tuning is not None
    assert tuning.decisions == 1 and tuning.measured >= 2 and tuning.left == 0
    assert list(winners(tmp_path).known) == [KEY]
    assert "tuned in" in str(compiled.report)
    assert Report.from_dict(json.loads(compiled.report.to_json())).tuning == tuning
    compiled.report.save(tmp_path / "report.html")
    assert "tuned in" in (tmp_path / "report.html").read_text()
    x = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    weight = onnx.numpy_helper.to_array(product().graph.initializer[0])
    np.testing.assert_allclose(compiled(x), np.maximum(x @ weight, 0), rtol=1e-4, atol=1e-4)


def test_winners_are_used_with_tune_alone(tmp_path: Path) -> None:
    plain = optimize(product(), verify="off", cache=False, progress=False)
    (decision,) = cast(Any, plain)._executable.decisions
    analytic, other, *_ = decision.costs
    assert widths(plain) == [analytic]
    winners(tmp_path).keep({KEY: Winner(other, 0.5, tuple(decision.costs))})
    tuned = optimize(product(), tune="1s", verify="off", cache=tmp_path, progress=False)
    assert widths(tuned) == [other]
    assert tuned.report.tuning is not None
    assert (tuned.report.tuning.known, tuned.report.tuning.measured) == (1, 0)
    assert widths(optimize(product(), verify="off", cache=tmp_path, progress=False)) == [analytic]
    assert widths(optimize(product(), tune="1s", verify="off", cache=False, progress=False)) == [analytic]


def test_a_call_that_ran_out_of_time_goes_on_the_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Tuning] = []

    def tune(_self: Tuner, before: Tunable, _seconds: float) -> tuple[Tunable, Tuning]:
        done.append(Tuning(1.0, 1.0, 2, left=0 if done else 1))
        return before, done[-1]

    monkeypatch.setattr(Tuner, "tune", tune)
    for _ in range(3):
        compiled = optimize(product(), tune="1s", verify="off", cache=tmp_path, progress=False)
    assert len(done) == 2 and compiled.report.cached is not None


def test_without_inputs_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.tuning.candidate_inputs", lambda *_: [])
    compiled = optimize(product(), tune="9s", verify="off", cache=False, progress=False)
    assert compiled.report.tuning is not None
    assert "no inputs were found" in str(compiled.report)


def test_no_cache_means_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_store(False) is None
    assert Winners(open_store(False), detect_cpu(), "float32").path is None
