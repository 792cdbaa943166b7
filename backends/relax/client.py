"""The parent's end of the compile process: start it early, send it graphs, survive its death."""

from __future__ import annotations

import atexit
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir

from backends.gpu.program import Program
from backends.relax.plan import Plan
from optimizer.child_process import ChildDiedError, ChildProcess
from optimizer.errors import CompileError, UnsupportedError
from optimizer.gpus import Gpu
from optimizer.target import Choices, Cpu

_SMALL_BYTES = 1 << 16
"""Initializers of at most so many bytes travel to the compile process with their values."""

PROCESS = ChildProcess("backends.relax.worker", {"TVM_BACKTRACE": "0"})
atexit.register(PROCESS.close)


def compile_graph(
    model: ir.Model,
    cpu: Cpu,
    library: Path,
    *,
    linker: list[str],
    allow_fallback: bool,
    choices: Choices = (),
) -> Plan:
    """Compile a graph in the child process; the native module is written to `library`.

    `linker`: the command that links it; empty for the system's compiler. `choices`: what was measured to be better than
    what the tile model would choose; see `backends.cpu.choices`.

    Raises:
        UnsupportedError: `allow_fallback` is false and a node cannot be expressed.
        CompileError: the compiler failed or crashed.
    """
    own = {"kind": "cpu", "cpu": cpu, "choices": dict(choices), "library": str(library), "linker": linker}
    return cast(Plan, _ask(model, own, allow_fallback=allow_fallback)["plan"])


def compile_for_device(model: ir.Model, gpu: Gpu, *, allow_fallback: bool) -> tuple[Plan, Program | None, str]:
    """Compile a graph in the child process: the plan, what a device does, and the text of its program.

    Raises:
        UnsupportedError: `allow_fallback` is false and a node cannot be expressed.
        CompileError: the compiler failed or crashed.
    """
    answer = _ask(model, {"kind": gpu.kind, "gpu": gpu}, allow_fallback=allow_fallback)
    program, source = answer["program"] or (None, "")
    return answer["plan"], program, source


def _ask(model: ir.Model, own: dict[str, Any], *, allow_fallback: bool) -> dict[str, Any]:
    """The answer to a request; `own`: what only this kind of target needs."""
    request = {
        "model": _skeleton(model).SerializeToString(),
        "constants": _constants(model.graph),
        "weights": sorted(n for n, v in model.graph.initializers.items() if v.const_value is not None),
        "allow_fallback": allow_fallback,
        **own,
    }
    try:
        answer = PROCESS.ask(request)
    except ChildDiedError as error:
        raise CompileError(f"the compile process died ({error})") from error
    if "refused" in answer:
        name, reason = next(iter(answer["refused"].items()))
        more = len(answer["refused"]) - 1
        tail = f" (and {more} more nodes)" if more else ""
        raise UnsupportedError(f"{reason}{tail}; allow fallback='onnxruntime' to run it there", node=name)
    if "error" in answer:
        raise CompileError(f"code generation failed: {answer['error'][:500]}")
    return answer


def _constants(graph: ir.Graph) -> dict[str, np.ndarray[Any, Any]]:
    """The values of the small initializers."""
    return {
        name: np.array(value.const_value.numpy())
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes <= _SMALL_BYTES
    }


def _skeleton(model: ir.Model) -> onnx.ModelProto:
    """The graph as a proto, with its initializers as inputs: their types without their values."""
    graph = model.graph
    held = dict(graph.initializers.items())
    graph.initializers.clear()
    try:
        proto = ir.to_proto(model)
    finally:
        graph.initializers.update(held)
    for name, value in held.items():
        tensor = value.const_value
        if tensor is not None:
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(name, int(tensor.dtype), list(tensor.shape.numpy()))
            )
    return proto
