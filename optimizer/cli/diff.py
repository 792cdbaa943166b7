"""`tersor diff`: show how two models differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from optimizer.cli.command import Result
from optimizer.errors import InputError

SUMMARY = "show how two models differ: nodes added, removed, fused or changed, and weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("before", type=Path, help="an .onnx file, or a .tersor file for the graph in it")
    parser.add_argument(
        "after", type=Path, nargs="?", help="the same; may be left out for a .tersor file, which knows its original"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page that shows both graphs")


def run(options: argparse.Namespace) -> Result:
    """What differs."""
    from optimizer.model_diff import diff, diff_artifact

    if options.html is not None and options.html.suffix != ".html":
        raise InputError(f"--html must name an .html file, not {str(options.html)!r}")
    both = options.after is not None
    found = diff(options.before, options.after) if both else diff_artifact(options.before)
    if options.html is not None:
        found.save(options.html)
    return found.to_dict(), found
