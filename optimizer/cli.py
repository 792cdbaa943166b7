"""The `tersor` command.

Exit codes: 0 all is well; 1 a check failed (the model is damaged, the result is wrong, a file cannot be written); 2 the
command was used wrongly. Results go to standard output, everything else to standard error; `--json` gives results for
programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from optimizer.errors import InputError, PipelineError, PrecisionError, TargetError, TersorError

__all__ = ["main"]

OK, CHECK_FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
_USAGE_ERRORS = (InputError, PipelineError, PrecisionError, TargetError)
_WIDTH = 140

Result = tuple[Any, RenderableType]
"""What a command found: as JSON types, and to be read."""


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
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", INTERRUPTED)
    _show(data, text, as_json=options.json)
    return OK


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tersor", description="Optimize, compile and measure ONNX models.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], Result], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        added.add_argument("--json", action="store_true", help="print the result as JSON")
        return added

    one = command("optimize", _optimize, "optimize and compile a model, and show what was done")
    one.add_argument("model", type=Path, help="an .onnx file")
    one.add_argument("-o", "--output", type=Path, help="where to save: .tersor, or .onnx for the optimized graph")
    _add_optimizer_options(one)

    one = command("inspect", _inspect, "show what a model or a saved compiled model holds")
    one.add_argument("model", type=Path, help="an .onnx or a .tersor file")

    one = command("bench", _bench, "time a model beside ONNX Runtime, each in a process of its own")
    one.add_argument("model", type=Path, help="an .onnx file, which is compiled first, or a .tersor file")
    one.add_argument("--threads", type=int, help="threads of each (default: all cores)")
    one.add_argument("--rounds", type=int, default=10, help="turns of each (default: %(default)s)")
    one.add_argument(
        "--dim", type=_dim, action="append", default=[], metavar="NAME=SIZE", help="size of a symbolic dimension"
    )
    _add_optimizer_options(one)

    command("passes", _passes, "list the passes and their options")
    command("targets", _targets, "list the targets and what they need")
    return parser


def _add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", default="cpu", help="where the model will run (default: %(default)s)")
    parser.add_argument("--precision", default="float32", help="default: %(default)s")
    parser.add_argument("--passes", help='a pipeline such as "fold-constants,remove-unused" (default: the target\'s)')
    parser.add_argument("--verify", default="final", help="off, final or each (default: %(default)s)")
    parser.add_argument("--fallback", default="onnxruntime", help="onnxruntime or error (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="for the inputs of the check (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _dim(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdigit() or not int(size):
        raise argparse.ArgumentTypeError(f"must be NAME=SIZE with a positive size, not {text!r}")
    return name, int(size)


def _compile(options: argparse.Namespace) -> Any:
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


def _optimize(options: argparse.Namespace) -> Result:
    if options.output is not None and options.output.suffix not in (".tersor", ".onnx"):
        raise InputError(f"--output must end in .tersor or .onnx, not {str(options.output)!r}")
    compiled = _compile(options)
    if options.output is not None:
        (compiled.save_onnx if options.output.suffix == ".onnx" else compiled.save)(options.output)
    return compiled.report.to_dict(), compiled.report


def _inspect(options: argparse.Namespace) -> Result:
    from optimizer.inspection import inspect_file, show_inspection

    facts = inspect_file(options.model)
    text = show_inspection(facts)
    return {key: value for key, value in facts.items() if key != "report_text"}, text


def _bench(options: argparse.Namespace) -> Result:
    from optimizer.api import load
    from optimizer.bench import bench
    from optimizer.reference import Oracle
    from optimizer.target import detect_cpu

    if options.rounds < 1 or (options.threads is not None and options.threads < 1):
        raise InputError("--rounds and --threads must be positive")
    saved = options.model.exists() and zipfile.is_zipfile(options.model)
    compiled = load(options.model) if saved else _compile(options)
    inputs = Oracle(compiled.graph, seed=options.seed, dims=dict(options.dim)).inputs
    with tempfile.TemporaryDirectory(prefix="tersor-") as folder:
        artifact, onnx_model = options.model, options.model
        if saved:
            onnx_model = Path(folder) / "model.onnx"
            compiled.save_onnx(onnx_model)
        else:
            artifact = Path(folder) / "model.tersor"
            compiled.save(artifact, graph=False)
        threads = options.threads or detect_cpu().cores
        result = bench(artifact, onnx_model, inputs, threads=threads, rounds=options.rounds)
    return result.to_dict(), result


def _passes(options: argparse.Namespace) -> Result:
    del options
    from passes.registry import PASSES

    rows: list[dict[str, Any]] = [
        {"name": name, "summary": _summary(cls), "options": {f.name: f.default for f in dataclasses.fields(cls)}}
        for name, cls in PASSES.items()
    ]
    table = Table("pass", "what it does", "options and their defaults")
    for row in rows:
        table.add_row(row["name"], row["summary"], ", ".join(f"{k}={v}" for k, v in row["options"].items()))
    return rows, table


def _summary(cls: type) -> str:
    return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())


def _targets(options: argparse.Namespace) -> Result:
    del options
    from backends import BACKENDS, get_backend

    infos = [get_backend(kind).describe() for kind in sorted(BACKENDS)]
    table = Table("target", "what it is", "needs", "operators", "precisions", "how results are checked")
    for info in infos:
        table.add_row(info.name, info.summary, info.needs, str(info.operators), ", ".join(info.precisions), info.proof)
    return [dataclasses.asdict(info) for info in infos], table
