"""int8 as users get it: our own quantizer and kernels, beside ONNX Runtime's and OpenVINO's, and beside float32.

    python -m benchmarks.int8_race                          # all models, printed
    python -m benchmarks.int8_race --models minilm          # one
    python -m benchmarks.int8_race --write                  # into benchmarks/RESULTS.md

Ours is `optimize(model, precision="int8")`, with calibration data and, for models of products, without. ONNX Runtime
reads what its own quantizer wrote, static and dynamic; OpenVINO that static file, and what NNCF wrote if that is
installed. All calibrate on the same inputs. Each contestant has a process of its own, they run in turn, and of each
the faster form counts. An error is that of the outputs beside our float32. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import contestants
from benchmarks.contestants import OPENVINO, ORT, TERSOR
from benchmarks.int8_models import MODELS, TRANSFORMERS, by_nncf, by_rows, quantized, variations
from benchmarks.results import RESULTS, Section, console, versions
from optimizer import optimize
from optimizer.timing import Build, Measurement, ratio, relative_error

__all__ = ["SECTION", "Race", "main", "race", "summary"]

THREADS, ROUNDS = 2, 15
FLOAT32, STATIC, DYNAMIC, NNCF = "float32", "static", "dynamic", "NNCF"
_ERRORS = (f"{TERSOR}'s error", f"{ORT}'s", f"{OPENVINO}'s")
_OF_PRODUCTS = (*TRANSFORMERS, "ppocr-rec")
"""Models with products, whose rows can have ranges of their own."""
_ENTRIES = (
    (TERSOR, FLOAT32), (TERSOR, STATIC), (TERSOR, DYNAMIC), (ORT, STATIC), (ORT, DYNAMIC), (OPENVINO, STATIC),
    (OPENVINO, NNCF),
)  # fmt: skip
SECTION = Section(
    "int8 by everyone's own quantizer",
    ("model", *(f"{who} {form} ms" for who, form in _ENTRIES), "over the best peer", "over float32", *_ERRORS),
    frozenset({"model"}),
    "<!-- begin: written by benchmarks.int8_race -->",
    "<!-- end of benchmarks.int8_race -->",
)


@dataclass(frozen=True)
class Race:
    """What was measured of one model.

    Attributes:
        name: Of the model.
        measured: By contestant and form, as in the table's columns.
    """

    name: str
    measured: Mapping[str, Measurement]

    def best(self, who: str) -> Measurement | None:
        """The faster int8 form of a contestant."""
        forms = [
            self.measured[key] for key in (f"{who} {form}" for form in (STATIC, DYNAMIC, NNCF)) if key in self.measured
        ]
        return min(forms, key=lambda each: each.seconds, default=None)

    @property
    def over_peers(self) -> float:
        """How many times as long as ours the best peer takes; NaN without one."""
        peers = [best for who in (ORT, OPENVINO) if (best := self.best(who)) is not None]
        return self._over(min(peers, key=lambda each: each.seconds, default=None))

    @property
    def over_float32(self) -> float:
        """How many times as long as our int8 our float32 takes."""
        return self._over(self.measured[f"{TERSOR} {FLOAT32}"])

    def _over(self, other: Measurement | None) -> float:
        mine = self.best(TERSOR)
        return math.nan if mine is None or other is None else ratio(other, mine).median

    def cells(self) -> list[str]:
        """The row of the table."""
        times = [self.measured.get(f"{who} {form}") for who, form in _ENTRIES]
        return [
            self.name,
            *("" if each is None else f"{each.seconds * 1e3:.2f}" for each in times),
            f"{self.over_peers:.2f}",
            f"{self.over_float32:.2f}",
            *(self._error(who) for who in (TERSOR, ORT, OPENVINO)),
        ]

    def _error(self, who: str) -> str:
        best, exact = self.best(who), self.measured[f"{TERSOR} {FLOAT32}"]
        return "" if best is None else f"{relative_error(best.outputs, exact.outputs):.0e}"


def race(name: str, threads: int, rounds: int) -> Race:
    """Let everyone quantize a model, and measure.

    Raises:
        ContestantFailed: One failed beside the others that does not fail alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        builds = _builds(name, Path(folder), threads)
        measured, _ = contestants.compete_without_failures(builds, rounds)
    return Race(name, measured)


def _builds(name: str, folder: Path, threads: int) -> dict[str, Build]:
    model = quantized(name, folder)
    sets = [tuple(each) for each in variations(model.inputs)]
    forms: dict[str, dict[str, Any]] = {FLOAT32: {}, STATIC: {"precision": "int8", "calibration": sets}}
    if name in _OF_PRODUCTS:
        forms[DYNAMIC] = {"precision": "int8"}
    builds: dict[str, Build] = {}
    for form, options in forms.items():
        artifact = folder / f"{name}-{form}.tersor"
        case = model.case
        optimize(
            case.model, example_inputs=case.example_inputs, cache=False, verify="off", progress=False, **options
        ).save(artifact)
        builds[f"{TERSOR} {form}"] = partial(contestants.tersor, artifact, model.inputs, threads)
    for form, path in ((STATIC, model.path), (DYNAMIC, by_rows(model, folder))):
        builds[f"{ORT} {form}"] = partial(contestants.onnx_runtime, path, model.inputs, threads)
    if contestants.why_absent(OPENVINO, is_module=False) is None:
        files = {STATIC: model.path}
        if importlib.util.find_spec("nncf") is not None:
            files[NNCF] = by_nncf(model, folder)
        for form, path in files.items():
            builds[f"{OPENVINO} {form}"] = partial(contestants.openvino, path, model.inputs, threads)
    return builds


def summary(races: Sequence[Race]) -> str:
    """What the models come to together, in a sentence."""
    mean = math.exp(sum(math.log(each.over_peers) for each in races) / len(races))
    slower = [each.name for each in races if each.over_float32 < 1]
    last = f"slower than our float32: {', '.join(slower)}" if slower else "none is slower than our float32"
    return f"Over the best peer: {mean:.2f} in the geometric mean; {last}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_race", description=SECTION.title)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each contestant (default {ROUNDS})")
    parser.add_argument("--write", action="store_true", help=f"write the table into {RESULTS.name}")
    options = parser.parse_args(arguments)
    screen = console()
    races = []
    for name in options.models:
        races.append(race(name, options.threads, options.rounds))
        screen.print("  ".join(races[-1].cells()), markup=False)
    rows = [each.cells() for each in races]
    screen.print(SECTION.table(rows))
    screen.print(summary(races), markup=False)
    if options.write:
        how = (
            f"`python -m benchmarks.int8_race`, {time.strftime('%Y-%m-%d')}: {options.threads} threads, "
            f"{options.rounds} rounds; {versions('onnxruntime', 'openvino', 'nncf')}. {summary(races)}"
        )
        SECTION.write(SECTION.markdown(how, rows))
        screen.print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
