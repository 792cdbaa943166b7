"""The `tersor` command.

Exit codes: 0 all is well; 1 a check failed (the model is damaged, the result is wrong, a limit is exceeded, a file
cannot be written); 2 the command was used wrongly. Results go to standard output, everything else to standard error;
`--json` gives results for programs.

Each verb is a module of its own: `SUMMARY`, `add_arguments(parser)` and `run(options)`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console, RenderableType

from optimizer.cli import bench, bisect, cache, diff, explain, inspect, optimize, passes, targets
from optimizer.cli.command import CheckFailedError, Verb
from optimizer.errors import InputError, PipelineError, PrecisionError, TargetError, TersorError

__all__ = ["main"]

OK, CHECK_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
_USAGE_ERRORS = (InputError, PipelineError, PrecisionError, TargetError)
_WIDTH = 140

_VERBS: dict[str, Verb] = {
    "optimize": optimize,
    "inspect": inspect,
    "bench": bench,
    "diff": diff,
    "bisect": bisect,
    "explain": explain,
    "cache": cache,
    "passes": passes,
    "targets": targets,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is returned.

    Args:
        arguments: Those of the process when not given.
    """
    options = _parser().parse_args(arguments)
    try:
        data, text = options.run(options)
    except _USAGE_ERRORS as error:
        return _fail(str(error), BAD_USAGE)
    except TersorError as error:
        return _fail(str(error), CHECK_FAILED)
    except CheckFailedError as failure:
        _show(*failure.result, as_json=options.json)
        return _fail(failure.message, CHECK_FAILED) if failure.message else CHECK_FAILED
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", INTERRUPTED)
    _show(data, text, as_json=options.json)
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tersor", description="Optimize, compile and measure ONNX models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, verb in _VERBS.items():
        added = commands.add_parser(name, help=verb.SUMMARY, description=verb.SUMMARY)
        added.set_defaults(run=verb.run)
        added.add_argument("--json", action="store_true", help="print the result as JSON")
        verb.add_arguments(added)
    return parser


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"tersor: {line}", file=sys.stderr)
    return code


def _show(data: Any, text: RenderableType, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(data, indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    console.print(text, markup=False, highlight=False)
