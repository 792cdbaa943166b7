"""What the verbs of `tersor` share: their form, and the options of those that compile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import RenderableType

from optimizer.cli.policy import add_policy_options, precision_of

if TYPE_CHECKING:
    from optimizer.compiled import CompiledModel
    from optimizer.pass_manager import Pass

__all__ = [
    "CheckFailedError",
    "Result",
    "Verb",
    "add_optimizer_options",
    "add_pipeline_option",
    "compile_model",
    "read_pipeline",
]

Result = tuple[Any, RenderableType]
"""What a command found: as JSON types, and to be read."""


class CheckFailedError(Exception):
    """A check failed: the result is shown, and the exit code says so.

    Attributes:
        result: What was found.
        message: A line for standard error; `""` if the result says all.
    """

    def __init__(self, result: Result, message: str = "") -> None:
        super().__init__(message or "a check failed")
        self.result = result
        self.message = message


class Verb(Protocol):
    """A module with one verb.

    Attributes:
        SUMMARY: One line for `--help`.
    """

    SUMMARY: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments; `--json` is there already."""
        ...

    def run(self, options: argparse.Namespace) -> Result:
        """Do it."""
        ...


def add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    """The options of `optimize()`."""
    parser.add_argument("--target", default="cpu", help="where the model will run (default: %(default)s)")
    _add_precision(parser)
    add_policy_options(parser)
    parser.add_argument(
        "--calibration", type=Path, metavar="FOLDER", help="of .npz files, each with inputs by name; to quantize"
    )
    parser.add_argument("--memory-budget", metavar="BYTES", help='for activations, such as "512MB" (default: no limit)')
    parser.add_argument("--tune", metavar="TIME", help='measure alternatives so long, such as "30s" (default: not)')
    parser.add_argument("--passes", help='a pipeline such as "fold-constants,remove-unused" (default: the target\'s)')
    parser.add_argument("--verify", default="final", help="off, final or each (default: %(default)s)")
    parser.add_argument("--fallback", default="onnxruntime", help="onnxruntime or error (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="for the inputs of the check (default: %(default)s)")
    parser.add_argument("--no-cache", action="store_true", help="compile in any case, and keep nothing for next time")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        default="float32",
        help="float32, bfloat16, float16, int8, int4, or mixed under a budget (default: %(default)s)",
    )


def compile_model(options: argparse.Namespace) -> CompiledModel:
    """Call `optimize()` on `options.model` with the options of `add_optimizer_options`."""
    from optimizer.api import optimize
    from optimizer.calibration_files import read_sets

    return optimize(
        options.model,
        options.target,
        precision=precision_of(options),
        calibration=None if options.calibration is None else list(read_sets(options.calibration)),
        memory_budget=options.memory_budget,
        tune=options.tune,
        passes=options.passes,
        verify=options.verify,
        fallback=options.fallback,
        seed=options.seed,
        progress=False if options.quiet else None,
        cache=not options.no_cache,
    )


def add_pipeline_option(parser: argparse.ArgumentParser) -> None:
    """The passes to run."""
    parser.add_argument("--passes", "--pipeline", help="a pipeline string (default: that of the target)")
    parser.add_argument("--target", default="cpu", help="whose pipeline is the default (default: %(default)s)")
    _add_precision(parser)


def read_pipeline(options: argparse.Namespace) -> list[Pass]:
    """The passes that the options of `add_pipeline_option` ask for.

    Raises:
        PipelineError, PrecisionError, TargetError: There is no such pass, option, precision or target.
    """
    from backends import get_backend
    from optimizer.api import pipeline_of
    from optimizer.precision import check_precision
    from optimizer.target import Target

    target = Target.parse(options.target)
    check_precision(options.precision, str(target), get_backend(target.kind).precisions)
    return pipeline_of(options.passes, target, options.precision)
