"""Nodes that are left by us, OnnxSlim, onnxsim and ONNX Runtime (extended), and how long each takes.

    python -m benchmarks.nodes                          # all, printed
    python -m benchmarks.nodes --models BERT Llama      # some
    python -m benchmarks.nodes --write                  # all, into benchmarks/RESULTS.md

The transformers are exported by PyTorch at opsets 18, 20 and 23, with eager and with SDPA attention where there is the
choice. Times are from a model in memory to a model in memory, the least of three runs, in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks import node_cases, node_contestants
from benchmarks.node_cases import NodeCase
from benchmarks.node_contestants import NAMES, Left
from benchmarks.results import RESULTS, Section, console, versions

TRANSFORMERS = (
    "BERT", "ViT", "GPT-2", "Llama", "Phi", "MiniLM", "Whisper encoder", "Whisper decoder", "TransformerEncoder",
    "TransformerDecoder",
)  # fmt: skip
LIGHT = "light"
COLUMNS = (
    "model", "opset", "attention", *NAMES, "of the best", "fused", "tersor s", "OnnxSlim s", "times OnnxSlim's",
    "error",
)  # fmt: skip
SECTION = Section(
    "Nodes left",
    COLUMNS,
    texts=frozenset({"model", "attention"}),
    begin="<!-- begin: written by benchmarks.nodes -->",
    end="<!-- end of benchmarks.nodes -->",
)
FAILED = Left(-1, 0.0)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One model, and what each leaves of it."""

    case: NodeCase
    left: dict[str, Left]

    @property
    def share(self) -> float:
        """Our nodes over those of the best of the others."""
        others = [left.nodes for name, left in self.left.items() if name != "tersor" and left.nodes >= 0]
        return self.left["tersor"].nodes / min(others) if others else 0.0

    def cells(self) -> tuple[str, ...]:
        """One text for each column."""
        ours, slim = self.left["tersor"], self.left["OnnxSlim"]
        fused = f"{ours.fused} of {self.case.attentions}" if self.case.attentions else ""
        return (
            self.case.model,
            str(self.case.opset or ""),
            self.case.attention,
            *(str(self.left[name].nodes) if self.left[name].nodes >= 0 else "failed" for name in NAMES),
            f"{self.share:.0%}",
            fused,
            f"{ours.seconds:.2f}",
            f"{slim.seconds:.2f}" if slim.nodes >= 0 else "",
            f"{ours.seconds / slim.seconds:.2f}" if slim.nodes >= 0 else "",
            "" if ours.error is None else f"{ours.error:.0e}",
        )


def measure(names: Sequence[str], show: Callable[[Row], None]) -> list[Row]:
    """Every model with every optimizer; `show` is called with each row as it is there."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            cases = _apart(_cases, name, Path(folder)) or []
            for case in cases:
                left = {who: _apart(node_contestants.run, who, case.path, case.inputs) or FAILED for who in NAMES}
                rows.append(Row(case, left))
                show(rows[-1])
    return rows


def _cases(name: str, folder: Path) -> list[NodeCase]:
    return node_cases.light_models() if name == LIGHT else node_cases.exported(name, folder)


def _apart(
    work: Callable[Parameters, Result], *arguments: Parameters.args, **options: Parameters.kwargs
) -> Result | None:
    """What `work` gives, in a process of its own; `None` when the process dies or an optimizer refuses the model."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(work, *arguments, **options).result()
        except BrokenProcessPool:
            return None
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            sys.stderr.write(f"{arguments[0]}: {type(error).__name__}: {error}\n")
            return None


def heading() -> str:
    """How it was measured, for RESULTS.md."""
    installed = versions("onnxslim", "onnxsim", "onnxruntime", "torch", "transformers")
    return f"`python -m benchmarks.nodes --write`, {time.strftime('%Y-%m-%d')}; {installed}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nodes", description="Nodes left by each optimizer.")
    known = (*TRANSFORMERS, LIGHT)
    parser.add_argument(
        "--models", nargs="+", choices=known, default=list(known), metavar="NAME", help=", ".join(known)
    )
    parser.add_argument("--write", action="store_true", help=f"write the table into {RESULTS.name}")
    options = parser.parse_args(arguments)
    screen = console()
    rows = measure(options.models, lambda row: screen.print("  ".join(row.cells())))
    cells = [row.cells() for row in rows]
    screen.print(SECTION.table(cells))
    if options.write:
        SECTION.write(SECTION.markdown(heading(), cells))
        screen.print(f"written to {RESULTS.name}")


if __name__ == "__main__":
    main()
