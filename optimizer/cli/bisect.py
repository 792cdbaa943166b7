"""`tersor bisect`: find the pass that breaks a model, and the node at which it first goes wrong."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from optimizer.cli.command import CheckFailedError, Result, add_pipeline_option, read_pipeline
from optimizer.errors import InputError

if TYPE_CHECKING:
    from optimizer.bisection import Bisection, PairResult

SUMMARY = "find the pass that breaks a model, and the node at which it first goes wrong"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", type=Path, help="an .onnx file")
    parser.add_argument(
        "after",
        type=Path,
        nargs="?",
        help="what another optimizer made of the model, such as OnnxSlim or ONNX Runtime: the node that first differs "
        "is found, and no pass is run",
    )
    add_pipeline_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="for the inputs (default: %(default)s)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="a folder for the smallest model that shows the fault (default: none is saved)",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(options: argparse.Namespace) -> Result:
    """What was found; a fault is a failed check."""
    if options.after is not None:
        if options.passes is not None or options.output is not None:
            raise InputError("--passes and -o are for finding a pass; leave them out when two models are compared")
        return _pair(options)
    return _pipeline(options)


def _pipeline(options: argparse.Namespace) -> Result:
    from optimizer.bisection import bisect
    from optimizer.frontends import load_model
    from optimizer.progress import Stages
    from optimizer.reference import Oracle

    pipeline = read_pipeline(options)
    stages = Stages(False if options.quiet else None)
    with stages("running the model"):
        model = load_model(options.model)
        oracle = Oracle(model, seed=options.seed, other_sizes=True)
    with stages("bisecting"):
        found = bisect(model, pipeline, oracle, stages.detail)
    result = found.to_dict(), _describe(found)
    if found.fault is None:
        return result
    if options.output is not None:
        saved = found.fault.save(options.output)
        result = {**result[0], "saved": str(saved)}, f"{result[1]}\nit is in {saved}"
    raise CheckFailedError(result)


def _describe(found: Bisection) -> str:
    fault = found.fault
    if fault is None:
        return f"no fault: the {len(found.steps)} steps that change the model keep what it computes"
    lines = [
        str(fault),
        f"found among {len(found.steps)} steps in {found.runs} runs",
        f"a model of {len(fault.model.graph)} nodes shows it",
    ]
    if fault.origins:
        lines.insert(1, f"the node stands for: {', '.join(fault.origins)}")
    return "\n".join(lines)


def _pair(options: argparse.Namespace) -> Result:
    from optimizer.bisection import compare_pair
    from optimizer.frontends import load_model
    from optimizer.frontends.onnx_file import from_path
    from optimizer.reference import Oracle

    before = load_model(options.model)
    oracle = Oracle(before, seed=options.seed)
    found = compare_pair(before, from_path(options.after), oracle)
    result = found.to_dict(), _describe_pair(found)
    if not found.passed:
        raise CheckFailedError(result)
    return result


def _describe_pair(found: PairResult) -> RenderableType:
    if found.passed:
        return f"no fault: the outputs agree (relative error {found.comparison.error:.1e})"
    lines = [f"output {found.comparison.output!r} differs: {found.comparison.reason}"]
    if found.difference is None:
        lines.append(f"all {found.values} values that both models name agree: the fault is behind the last of them")
    else:
        lines.append(
            f"first at value {found.difference.value!r}, by node {found.difference.node!r} "
            f"(before: {found.node_before!r}): {found.difference.reason}"
        )
    return "\n".join(lines)
