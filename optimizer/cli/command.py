"""What the verbs of `tersor` share: their form, and the options of those that compile."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import RenderableType

if TYPE_CHECKING:
    from optimizer.compiled import CompiledModel

__all__ = ["Result", "Verb", "add_optimizer_options", "compile_model"]

Result = tuple[Any, RenderableType]
"""What a command found: as JSON types, and to be read."""


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
    parser.add_argument("--precision", default="float32", help="default: %(default)s")
    parser.add_argument("--passes", help='a pipeline such as "fold-constants,remove-unused" (default: the target\'s)')
    parser.add_argument("--verify", default="final", help="off, final or each (default: %(default)s)")
    parser.add_argument("--fallback", default="onnxruntime", help="onnxruntime or error (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="for the inputs of the check (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def compile_model(options: argparse.Namespace) -> CompiledModel:
    """Call `optimize()` on `options.model` with the options of `add_optimizer_options`."""
    from optimizer.api import optimize

    return optimize(
        options.model,
        options.target,
        precision=options.precision,
        passes=options.passes,
        verify=options.verify,
        fallback=options.fallback,
        seed=options.seed,
        progress=False if options.quiet else None,
    )
