"""The compile process: its death, its errors and its end are the parent's to survive."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from backends.relax.client import PROCESS
from backends.relax.partition import segments
from backends.relax.size_value import evaluate
from optimizer import child_process
from optimizer.child_process import ChildProcess
from optimizer.errors import CompileError, UnsupportedError
from tests.backends.running import check, compiled, parse

RELU = "g (float[n] x) => (float[n] y) { y = Relu(x) }"
HALF = "g (float[n] x) => (float[n] y, int64[1,k] z) { y = Relu(x) z = NonZero(y) }"


def child_of(process: ChildProcess) -> int:
    process.start()
    assert process._child is not None
    return process._child.pid


def test_a_killed_child_is_an_error_and_the_next_call_works() -> None:
    check(parse(RELU), [np.ones(3, np.float32)])
    child = child_of(PROCESS)
    os.kill(child, signal.SIGSTOP)  # so that the answer cannot come first
    killer = threading.Timer(0.2, os.kill, (child, signal.SIGKILL))
    killer.start()
    with pytest.raises(CompileError, match="signal 9"):
        compiled(parse(RELU))
    check(parse(RELU), [np.ones(3, np.float32)])


def test_the_child_ends_with_its_parent() -> None:
    code = """if True:
        import time
        from backends.relax.client import PROCESS
        PROCESS.start()
        print(PROCESS._child.pid, flush=True)
        time.sleep(60)"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": "."}
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not Path(f"/proc/{child}").exists()


def test_an_interrupt_leaves_a_usable_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(child_process, "_read_message", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compiled(parse(RELU))
    check(parse(RELU), [np.ones(3, np.float32)])


def test_a_failed_compilation_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UnsupportedError, match="NonZero"):
        compiled(parse(HALF))
    assert list(tmp_path.iterdir()) == []


def test_the_rest_runs_in_onnx_runtime_and_is_named() -> None:
    executable = compiled(parse(HALF), fallback="onnxruntime")
    y, z = executable.run([np.array([-1, 2, 0, 3], np.float32)], 1)
    assert y.tolist() == [0, 2, 0, 3]
    assert z.tolist() == [[1, 3]]
    assert any("NonZero" in note for note in executable.notes)


HELD = {"w": np.arange(4, dtype=np.float32), "s": np.array([2, 2])}


def test_an_output_never_shares_memory_with_an_input() -> None:
    executable = compiled(
        parse("g (float[4] x) => (float[2,2] y) { s = Constant<value_ints=[2,2]>() y = Reshape(x, s) }")
    )
    room = np.arange(17, dtype=np.float32)
    for start in (i for i in range(13) if i % 3 == 0):  # aligned, and not: kernels then read a copy
        x = room[start : start + 4]
        (y,) = executable.run([x], 1)
        (again,) = executable.run([x + 1], 1)
        assert y.tolist() == (again - 1).tolist() == x.reshape(2, 2).tolist()
        y[...] = again[...] = -1
    assert room.tolist() == list(range(17))


def test_an_output_never_shares_memory_with_a_weight() -> None:
    executable = compiled(
        parse("g (float[4] x) => (float[4] y, float[2,2] z) { y = Add(x, w) z = Reshape(w, s) }", HELD),
    )
    for _ in range(2):
        y, z = executable.run([np.ones(4, np.float32)], 1)
        assert y.tolist() == [1, 2, 3, 4]
        assert z.tolist() == [[0, 1], [2, 3]]
        z[...] = -1


def test_several_threads_may_call_at_once() -> None:
    executable = compiled(
        parse("g (float[n,64] x) => (float[n,64] y) { y = MatMul(x, w) }", {"w": np.eye(64, dtype=np.float32)})
    )
    wrong: list[int] = []

    def call(seed: int) -> None:
        x = np.full((seed + 1, 64), seed, np.float32)
        for _ in range(20):
            if not np.array_equal(executable.run([x], 1 + seed % 2)[0], x):
                wrong.append(seed)

    threads = [threading.Thread(target=call, args=(s,)) for s in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_segments_change_the_engine_as_rarely_as_possible() -> None:
    import onnx_ir as ir

    model = ir.from_proto(
        parse(
            """g (float[n] x) => (float[n] e, float[n] f)
            { a = Relu(x) b = Abs(x) c = Relu(a) d = Abs(b) e = Relu(d) f = Relu(c) }"""
        )
    )
    nodes = list(model.graph)
    refused = {n for n in nodes if n.op_type == "Abs"}
    parts = segments(nodes, refused)
    assert [p.fallback for p in parts] == [True, False]
    assert sum(len(p.nodes) for p in parts) == len(nodes)


def test_derived_sizes_are_evaluated_exactly() -> None:
    formula = ["+", ["//", ["-", "h", 1], 2], ["max", ["%", "h", 4], 3]]
    assert evaluate(formula, {"h": 9}) == 4 + 3
