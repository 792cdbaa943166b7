"""The parent's end of the compile process: start it early, send it graphs, survive its death."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import onnx
import onnx_ir as ir

from backends.relax.plan import Plan
from backends.relax.worker import read_message, write_message
from optimizer.errors import CompileError, UnsupportedError
from optimizer.target import Cpu

_SMALL_BYTES = 1 << 16
"""Initializers of at most so many bytes travel to the compile process with their values."""


_LAST_SECONDS = 2.0


class CompileProcess:
    """One child process, started on demand and started again after a crash. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the process)

    def start(self) -> None:
        """Start the child if it is not running; returns at once."""
        with self._lock:
            self._start()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for the answer.

        Raises:
            CompileError: the child died.
        """
        with self._lock:
            child = self._start()
            try:
                write_message(cast(BinaryIO, child.stdin), request)
                answer = read_message(cast(BinaryIO, child.stdout))
            except BrokenPipeError:
                answer = None
            except BaseException:  # an interrupt leaves half a message in the pipe
                self._stop()
                raise
            if answer is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(_LAST_SECONDS)  # it tells how it died
                code = self._stop()
                raise CompileError(f"the compile process died ({_how(code)}); its last words: {self._last_words()}")
            return cast("dict[str, Any]", answer)

    def release(self) -> None:
        """End the child, for its memory; the next call starts another."""
        with self._lock:
            self._stop()

    def close(self) -> None:
        """End the child for good."""
        with self._lock:
            self._stop()
            self._log.close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            root = str(Path(__file__).resolve().parents[2])
            code = f"import sys; sys.path.insert(0, {root!r}); from backends.relax.worker import main; main()"
            self._log.seek(0)
            self._log.truncate()
            self._child = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, "TVM_BACKTRACE": "0"},
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        return self._child

    def _stop(self) -> int | None:
        child, self._child = self._child, None
        if child is None:
            return None
        child.kill()  # it holds nothing that must be put in order
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        return code

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-3:])[:400] or "none"


def _how(code: int | None) -> str:
    if code is None:
        return "no exit code"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


PROCESS = CompileProcess()
atexit.register(PROCESS.close)


def compile_graph(model: ir.Model, cpu: Cpu, library: Path, *, allow_fallback: bool) -> Plan:
    """Compile a graph in the child process; the native module is written to `library`.

    Raises:
        UnsupportedError: `allow_fallback` is false and a node cannot be expressed.
        CompileError: the compiler failed or crashed.
    """
    answer = PROCESS.ask(
        {
            "model": _skeleton(model).SerializeToString(),
            "constants": _constants(model.graph),
            "weights": sorted(n for n, v in model.graph.initializers.items() if v.const_value is not None),
            "cpu": cpu,
            "library": str(library),
            "allow_fallback": allow_fallback,
        }
    )
    if "refused" in answer:
        name, reason = next(iter(answer["refused"].items()))
        more = len(answer["refused"]) - 1
        tail = f" (and {more} more nodes)" if more else ""
        raise UnsupportedError(f"{reason}{tail}; allow fallback='onnxruntime' to run it there", node=name)
    if "error" in answer:
        raise CompileError(f"code generation failed: {answer['error'][:500]}")
    return cast(Plan, answer["plan"])


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
