"""`tersor inspect`: show what a model or a saved compiled model holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from optimizer.cli.command import Result

SUMMARY = "show what a model or a saved compiled model holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", type=Path, help="an .onnx or a .tersor file")


def run(options: argparse.Namespace) -> Result:
    """The facts about the file."""
    from optimizer.inspection import inspect_file, show_inspection

    facts = inspect_file(options.model)
    text = show_inspection(facts)
    return {key: value for key, value in facts.items() if key != "report_text"}, text
