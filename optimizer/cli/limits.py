"""The limits that `tersor optimize` checks for continuous integration, each a number that the result may not exceed."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.cli.policy import MIXED
from optimizer.errors import InputError

if TYPE_CHECKING:
    from optimizer.compiled import CompiledModel

__all__ = ["Check", "add_limits", "check_limits", "refuse_unknowable"]

_ROUNDS = 10


@dataclass(frozen=True)
class Check:
    """One limit, and what it was held against.

    Attributes:
        name: The option, such as `"--max-nodes"`.
        value: What was found; `None` if it is not known.
        limit: What is allowed.
        passed: Whether `value` is known and at most `limit`.
        text: What was found, to be read.
    """

    name: str
    value: float | None
    limit: float
    passed: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "within" if self.passed else "not known to be within" if self.value is None else "over"
        return f"{self.text}, {verdict} the limit of {self.limit:g} ({self.name})"


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The options."""
    limits = parser.add_argument_group("limits", "exit with 1, and write no model, if one is exceeded")
    limits.add_argument(
        "--max-error",
        type=_number,
        metavar="X",
        help="of the relative error against ONNX Runtime; with --precision mixed it is the budget",
    )
    limits.add_argument("--max-nodes", type=_count, metavar="N", help="of nodes in the optimized graph")
    limits.add_argument(
        "--fail-if-slower",
        type=_ratio,
        nargs="?",
        const=1.0,
        metavar="RATIO",
        help="of the latency over ONNX Runtime's, measured in turn on this machine (default: 1; leave room for noise)",
    )


def refuse_unknowable(options: argparse.Namespace) -> None:
    """Check the options before anything is done.

    Raises:
        InputError: A limit is for something that the other options keep from being known.
    """
    if options.max_error is not None and options.verify == "off" and options.precision != MIXED:
        raise InputError("--max-error needs the error: leave out --verify off")


def check_limits(options: argparse.Namespace, compiled: CompiledModel) -> tuple[Check, ...]:
    """Hold the result against the limits that were given; the cheap ones first."""
    return tuple(_checks(options, compiled))


def _checks(options: argparse.Namespace, compiled: CompiledModel) -> Iterator[Check]:
    report = compiled.report
    if options.max_nodes is not None:
        nodes = report.after.nodes
        yield Check("--max-nodes", nodes, options.max_nodes, nodes <= options.max_nodes, f"{nodes} nodes")
    if options.max_error is not None:
        error = report.verification.error if report.policy is None else report.policy.error
        passed = error is not None and error <= options.max_error
        text = f"no relative error: {report.verification.reason}" if error is None else f"relative error {error:.3g}"
        yield Check("--max-error", error, options.max_error, passed, text)
    if options.fail_if_slower is not None:
        ratio = _latency_ratio(options, compiled)
        text = f"{ratio:.3g} times ONNX Runtime's latency"
        yield Check("--fail-if-slower", ratio, options.fail_if_slower, ratio <= options.fail_if_slower, text)


def _latency_ratio(options: argparse.Namespace, compiled: CompiledModel) -> float:
    """Each in a process of its own, in turn: the median over the rounds."""
    from optimizer.bench import bench
    from optimizer.reference import Oracle

    inputs = Oracle(compiled.graph, seed=options.seed).inputs
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        artifact = Path(folder) / "model.tersor"
        compiled.save(artifact, graph=False)
        result = bench(artifact, options.model, inputs, threads=compiled.num_threads, rounds=_ROUNDS)
    return result.ratio.median


def _number(text: str) -> float:
    return _parsed(text, float, lambda number: number >= 0, "a number of at least 0")


def _count(text: str) -> float:
    return _parsed(text, int, lambda number: number >= 0, "a whole number of at least 0")


def _ratio(text: str) -> float:
    return _parsed(text, float, lambda number: number > 0, "a positive number")


def _parsed(text: str, read: Callable[[str], float], allowed: Callable[[float], bool], what: str) -> float:
    try:
        number = read(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or not allowed(number):
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
    return number
