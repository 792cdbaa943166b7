"""Kernels with control flow of their own, and what becomes of those that no device can run."""

from typing import Any

import numpy as np
import pytest
from tvm import tirx

from backends.gpu import schedule
from backends.gpu.procedures import DEMANDS, lower_procedure
from backends.relax import client
from backends.relax.loops import BufferLoad, BufferStore, ForKind, allocate, i64, loop, sequence
from backends.relax.values import Refused
from backends.relax.worker import handle
from optimizer.errors import UnsupportedError
from optimizer.gpus import GPUS
from tests.backends.running import Array, parse
from tests.gpu.running import check, compiled

RANDOM = np.random.default_rng(0)
GPU = GPUS["opencl"]


@pytest.mark.parametrize("axis", [0, 1])
def test_scans_and_scatters(axis: int) -> None:
    model = parse(
        """g (float[n,17] x, int64[2,17] i) => (float[n,17] c, float[n,17] s, float[n,4] v, int64[n,4] p)
        { c = CumSum(x, a) v, p = TopK(x, k) s = ScatterElements<axis=0, reduction="add">(x, i, u) }""",
        {"a": np.array(axis), "k": np.array([4]), "u": RANDOM.normal(size=(2, 17)).astype(np.float32)},
    )
    for n in (3, 200):
        inputs: list[Array] = [RANDOM.normal(size=(n, 17)).astype(np.float32), RANDOM.integers(0, n, (2, 17))]
        check(model, inputs)


def _iterations(own: int, kind: ForKind) -> tirx.PrimFunc:
    """Each iteration goes through a buffer of its own."""
    x, y = (tirx.decl_buffer([i64(100)], "float32", name) for name in "xy")

    def body(i: tirx.Expr) -> tirx.Stmt:
        buffer = tirx.decl_buffer([i64(own)], "float32", "own")
        clear = loop(own, lambda k: BufferStore(buffer, BufferLoad(x, [i]), [k]))
        return allocate([buffer], sequence([clear, BufferStore(y, BufferLoad(buffer, [i64(own - 1)]), [i])]))

    return tirx.PrimFunc([x, y], sequence([loop(100, body, kind)]))


def test_parallel_iterations_are_threads() -> None:
    text = str(lower_procedure(_iterations(4, ForKind.PARALLEL), GPU))
    assert "threadIdx.x" in text and "T.int64(64)" in text and "alloc_local" in text


def test_other_iterations_are_one_thread() -> None:
    text = str(lower_procedure(_iterations(4, ForKind.SERIAL), GPU))
    assert 'launch_thread("threadIdx.x", 1)' in text


def test_too_much_memory_of_an_iteration_is_refused() -> None:
    with pytest.raises(Refused, match="whose iterations need 8000 bytes each"):
        lower_procedure(_iterations(2000, ForKind.PARALLEL), GPU)


def test_demands_are_numbered() -> None:
    x = tirx.decl_buffer([i64(4)], "int64", "x")
    demand = tirx.AssertStmt(BufferLoad(x, [i64(0)]) > 0, _text("IndexError"), [_text("out "), _text("of range")])
    done = lower_procedure(tirx.PrimFunc([x], demand), GPU)
    assert [str(text) for text in done.attrs[DEMANDS]] == ["out of range"] and "tersor_faults" in str(done)


def _text(value: str) -> Any:
    from tvm.ir import StringImm

    return StringImm(value)


class _Here:
    """The compile process, in this one, so that a test can change it."""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        return handle(request)

    def release(self) -> None: ...


def test_a_kernel_beyond_the_language_runs_in_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Refused("no device can")

    monkeypatch.setattr(schedule, "lower_procedure", refuse)
    monkeypatch.setattr(client, "PROCESS", _Here())
    model = parse(
        "g (float[n,17] x) => (float[n,17] y) { a = Exp(x) c = CumSum(a, one) y = Neg(c) }", {"one": np.array(1)}
    )
    executable = check(model, [RANDOM.normal(size=(5, 17)).astype(np.float32)], fallback="onnxruntime")
    assert "CumSum: no device can" in executable.notes[0]
    with pytest.raises(UnsupportedError, match="CumSum: no device can"):
        compiled(model)
