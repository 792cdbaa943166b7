"""`tersor explain`: say where a pass fired, and why it did not where it nearly did."""

from __future__ import annotations

import argparse
from pathlib import Path

from optimizer.cli.command import Result, add_pipeline_option, read_pipeline

SUMMARY = "say where a pass fired, and why it did not where it nearly did"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", type=Path, help="an .onnx file")
    parser.add_argument("name", metavar="pass", help='such as "fuse-attention"; see "tersor passes"')
    add_pipeline_option(parser)


def run(options: argparse.Namespace) -> Result:
    """What it did."""
    from optimizer.explanation import explain
    from optimizer.frontends import load_model

    pipeline = read_pipeline(options)
    found = explain(load_model(options.model), pipeline, options.name)
    return found.to_dict(), found
