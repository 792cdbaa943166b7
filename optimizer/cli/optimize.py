"""`tersor optimize`: optimize and compile a model, and show what was done."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Group

from optimizer.cli.command import CheckFailedError, Result, add_optimizer_options, compile_model
from optimizer.cli.limits import add_limits, check_limits, refuse_unknowable
from optimizer.errors import InputError

SUMMARY = "optimize and compile a model, and show what was done"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", type=Path, help="an .onnx file")
    parser.add_argument("-o", "--output", type=Path, help="where to save: .tersor, or .onnx for the optimized graph")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report as a page with charts")
    add_optimizer_options(parser)
    add_limits(parser)


def run(options: argparse.Namespace) -> Result:
    """The report; the model is written if it is within all limits, the page in any case."""
    if options.output is not None and options.output.suffix not in (".tersor", ".onnx"):
        raise InputError(f"--output must end in .tersor or .onnx, not {str(options.output)!r}")
    if options.html is not None and options.html.suffix != ".html":
        raise InputError(f"--html must name an .html file, not {str(options.html)!r}")
    refuse_unknowable(options)
    compiled = compile_model(options)
    checks = check_limits(options, compiled)
    if options.html is not None:
        compiled.report.save(options.html)
    data = compiled.report.to_dict()
    if checks:
        data["checks"] = [check.to_dict() for check in checks]
    result: Result = data, Group(compiled.report, *map(str, checks))
    failed = [check for check in checks if not check.passed]
    if failed:
        unwritten = "" if options.output is None else f"; {options.output} was not written"
        raise CheckFailedError(result, "; ".join(map(str, failed)) + unwritten)
    if options.output is not None:
        (compiled.save_onnx if options.output.suffix == ".onnx" else compiled.save)(options.output)
    return result
