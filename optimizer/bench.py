"""`tersor bench`: a compiled model beside ONNX Runtime, each in a process of its own, in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from optimizer.text import render, seconds
from optimizer.timing import Outputs, Ratio, compete, ratio

__all__ = ["BenchResult", "bench"]


@dataclass(frozen=True)
class BenchResult:
    """Median latencies.

    Attributes:
        ours: Seconds of the compiled model.
        onnxruntime: Seconds of ONNX Runtime.
        ratio: Ours over ONNX Runtime's: the median over the rounds, and the quartiles.
        threads: Used by each.
    """

    ours: float
    onnxruntime: float
    ratio: Ratio
    threads: int

    def to_dict(self) -> dict[str, object]:
        """JSON types."""
        return {
            "tersor_seconds": self.ours,
            "onnxruntime_seconds": self.onnxruntime,
            "ratio": self.ratio.median,
            "ratio_quartiles": [self.ratio.low, self.ratio.high],
            "threads": self.threads,
        }

    def __rich__(self) -> RenderableType:
        table = Table(title=f"Median latency, {self.threads} threads", title_justify="left")
        table.add_column("")
        table.add_column("time", justify="right")
        table.add_column("times ONNX Runtime's (quartiles)", justify="right")
        table.add_row("tersor", seconds(self.ours), str(self.ratio))
        table.add_row("ONNX Runtime", seconds(self.onnxruntime), "1")
        return table

    def __str__(self) -> str:
        return render(self.__rich__())


def bench(artifact: Path, onnx_model: Path, inputs: list[Any], *, threads: int, rounds: int) -> BenchResult:
    """Time both in turn.

    Args:
        artifact: A saved compiled model.
        onnx_model: What ONNX Runtime gets, with all its own optimizations.
        inputs: For both.
        threads: For both.
        rounds: How often each has its turn.

    Raises:
        ContestantFailed: One of them failed or died.
    """
    ours, theirs = "tersor", "ONNX Runtime"
    measured = compete(
        {
            ours: partial(_compiled, artifact, inputs, threads),
            theirs: partial(_onnxruntime, onnx_model, inputs, threads),
        },
        rounds=rounds,
    )
    return BenchResult(
        measured[ours].seconds, measured[theirs].seconds, ratio(measured[ours], measured[theirs]), threads
    )


def _compiled(path: Path, inputs: list[Any], threads: int) -> Callable[[], Outputs]:
    from optimizer import load

    compiled = load(path)
    compiled.num_threads = threads

    def call() -> Outputs:
        outputs = compiled(*inputs)
        return outputs if isinstance(outputs, tuple) else [outputs]

    return call


def _onnxruntime(path: Path, inputs: list[Any], threads: int) -> Callable[[], Outputs]:
    from optimizer.ort_session import OrtSession

    return partial(OrtSession(path, num_threads=threads).run, inputs)
