"""`tersor optimize`: optimize and compile a model, and show what was done."""

from __future__ import annotations

import argparse
from pathlib import Path

from optimizer.cli.command import Result, add_optimizer_options, compile_model
from optimizer.errors import InputError

SUMMARY = "optimize and compile a model, and show what was done"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", type=Path, help="an .onnx file")
    parser.add_argument("-o", "--output", type=Path, help="where to save: .tersor, or .onnx for the optimized graph")
    add_optimizer_options(parser)


def run(options: argparse.Namespace) -> Result:
    """The report."""
    if options.output is not None and options.output.suffix not in (".tersor", ".onnx"):
        raise InputError(f"--output must end in .tersor or .onnx, not {str(options.output)!r}")
    compiled = compile_model(options)
    if options.output is not None:
        (compiled.save_onnx if options.output.suffix == ".onnx" else compiled.save)(options.output)
    return compiled.report.to_dict(), compiled.report
