"""What is done with a model before it is timed: it is optimized, and exported for the peers, in fresh processes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.memory import PeakMemory
from optimizer.timing import ContestantFailed

__all__ = ["Compilation", "Workload", "compile_model", "export_model"]

Answer = TypeVar("Answer")
Job = tuple[Answer, Callable[[], object]]
"""What a process is measured for, and what it does afterwards, when its memory is no longer watched."""


@dataclass(frozen=True)
class Workload:
    """A model as the peers get it.

    Attributes:
        inputs: What each contestant is called with.
        onnx: The file.
        model_bytes: The size of the weights as they are stored.
        flops: Floating-point operations of a call, a multiply-add counted as two, before any optimization.
        weight_bytes: The weights in memory.
        is_module: Whether it is a PyTorch module.
        bfloat16_bound: The relative error that rounding to bfloat16 may cost; see `optimizer.comparison`.
    """

    inputs: list[np.ndarray]
    onnx: Path
    model_bytes: int
    flops: int
    weight_bytes: int
    is_module: bool
    bfloat16_bound: float = 0.0


@dataclass(frozen=True)
class Compilation:
    """What `optimize()` took.

    Attributes:
        seconds: From the loaded model to the compiled one.
        notes: What its report says did not go into compiled code.
        peak: The most memory of the process and of its compile process at one moment, in bytes.
    """

    seconds: float
    notes: list[str]
    peak: int


def compile_model(name: str, artifact: Path, precision: str = "float32") -> Compilation:
    """Optimize a model of the registry and save it.

    Raises:
        ContestantFailed: It failed; standard error has its traceback.
    """
    (seconds, notes), peak = _in_a_process(partial(_optimize, precision=precision), name, artifact)
    return Compilation(seconds, notes, peak)


def export_model(name: str, folder: Path) -> Workload:
    """Write a model of the registry as ONNX Runtime and OpenVINO get it.

    Raises:
        ContestantFailed: It failed; standard error has its traceback.
    """
    workload, _ = _in_a_process(_export, name, folder)
    return workload


def _in_a_process(work: Callable[[str, Path], Job[Answer]], name: str, path: Path) -> tuple[Answer, int]:
    """What `work` answers, and the peak memory of the process until then, in bytes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_answer, args=(there, work, name, path))
    process.start()
    there.close()
    peak = PeakMemory(process.pid or 0)
    try:
        answer: Answer = here.recv()
    except EOFError:
        raise ContestantFailed(f"{name}: the process died; its traceback is above") from None
    finally:
        bytes_ = peak.stop()
    here.send("measured")
    process.join()
    return answer, bytes_


def _answer(pipe: Connection, work: Callable[[str, Path], Job[Answer]], name: str, path: Path) -> None:
    answer, afterwards = work(name, path)
    pipe.send(answer)
    pipe.recv()  # what comes now is not measured
    pipe.close()
    afterwards()


def _optimize(name: str, artifact: Path, precision: str = "float32") -> Job[tuple[float, list[str]]]:
    import models
    from optimizer import optimize

    case = models.load(name)
    start = time.perf_counter()
    compiled = optimize(case.model, "cpu", example_inputs=case.example_inputs, precision=precision, cache=False)
    seconds = time.perf_counter() - start
    return (seconds, list(compiled.report.notes)), partial(compiled.save, artifact)


def _export(name: str, folder: Path) -> Job[Workload]:
    import onnx_ir as ir
    import torch

    import models
    from benchmarks.export import arrays, export
    from optimizer.comparison import EPSILON_PER_OP, Tolerance
    from optimizer.frontends import load_model
    from optimizer.ir.costs import model_costs

    case = models.load(name)
    inputs, path = arrays(case), export(case, folder)
    model = load_model(path)
    names = (value.name or "" for value in model.graph.inputs)
    costs = model_costs(model, {name: array.shape for name, array in zip(names, inputs, strict=True)})
    is_module = isinstance(case.model, torch.nn.Module)
    bound = Tolerance.of(model).error * EPSILON_PER_OP[ir.DataType.BFLOAT16] / EPSILON_PER_OP[ir.DataType.FLOAT]
    return Workload(inputs, path, case.bytes, costs.flops, costs.bytes, is_module, bound), lambda: None
