"""The arena of a compiled model: what shares its bytes, what does not, and that results stay right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import get_backend
from backends.relax.memory import Memory, Workspace, in_pages, scratch_bytes
from backends.relax.packing import aligned_empty
from backends.relax.storage import Storage
from optimizer.activation_memory import ActivationMemory
from optimizer.executable import Executable
from tests.backends.emitted import normal
from tests.backends.running import Array, check, compiled, distance, oracle, parse

LARGE = 4 * 64 * 256
"""Bytes of the tensors below."""
RESIDUAL = "s = MatMul(q, c) r = Add(s, p) t = Relu(r) y = MatMul(t, b)"
WEIGHTS = {name: normal(256, 256) / 16 for name in ("a", "b", "c")}


def plan(executable: Executable, step: int = 0) -> dict[str, Any]:
    steps: Any = executable.manifest()["steps"]
    memory: dict[str, Any] = steps[step]["memory"]
    return memory


def memory_of(executable: Executable) -> ActivationMemory:
    assert executable.memory is not None
    return executable.memory


def products(tail: str, outputs: str = "float[64,256] y") -> Executable:
    body = f"g (float[64,256] x) => ({outputs}) {{ p = MatMul(x, a) q = MatMul(p, b) {tail} }}"
    return check(parse(body, WEIGHTS), [normal(64, 256)])


def test_a_sum_takes_the_place_of_the_operand_that_dies() -> None:
    """The kernel reads q as a matrix, and p element by element where it stores."""
    executable = products(RESIDUAL)
    assert [buffer["slot"] for buffer in plan(executable)["buffers"]] == [0, 1, 0]
    assert memory_of(executable).arena == memory_of(executable).least == 2 * LARGE


def test_an_operand_that_is_needed_later_stays() -> None:
    executable = products("s = MatMul(q, c) r = Add(s, p) t = MatMul(r, c) y = Add(t, p)")
    assert [buffer["slot"] for buffer in plan(executable)["buffers"]] == [0, 1, 2]
    assert memory_of(executable).arena == 3 * LARGE


def test_a_kernel_may_write_over_its_operand_at_one_call_and_not_at_another() -> None:
    """r keeps p, which s then replaces: two kernels that differ in nothing else."""
    executable = products("t = MatMul(q, b) r = Add(t, p) u = MatMul(r, b) s = Add(u, p) y = MatMul(s, c)")
    memory = plan(executable)
    kernels = [name for name in memory["kernels"] if "add" in name]
    assert len(set(kernels)) == 2
    assert kernels[1] == f"{kernels[0]}_in_place1"
    nodes: Any = executable.manifest()["kernels"]
    assert nodes[kernels[0]] == nodes[kernels[1]]
    assert [buffer["slot"] for buffer in memory["buffers"]] == [0, 1, 2, 0]


def test_a_matrix_that_is_added_as_well_stays() -> None:
    executable = products("r = Add(q, p) y = MatMul(r, c)")
    assert [buffer["slot"] for buffer in plan(executable)["buffers"]] == [0, 1]


def test_a_product_is_not_written_over_what_it_multiplies() -> None:
    executable = products("y = MatMul(q, c)")
    assert len({buffer["slot"] for buffer in plan(executable)["buffers"]}) == 2


def test_an_operand_that_is_read_in_two_ways_stays() -> None:
    """The transposed one is read across: p + transposed p."""
    body = """g (float[256,256] x) => (float[256,256] y) {
        p = MatMul(x, a) t = Transpose(p) q = MatMul(t, p) r = Add(q, p) y = MatMul(r, c) }"""
    check(parse(body, WEIGHTS), [normal(256, 256)])


def test_no_result_takes_the_place_of_an_input() -> None:
    """An input is the caller's: it must be the same afterwards."""
    text = "g (float[64,256] x) => (float[64,256] y) { p = Exp(x) q = MatMul(p, a) r = Add(q, x) y = MatMul(r, b) }"
    model = parse(text, WEIGHTS)
    x = aligned_empty(LARGE).view(np.float32).reshape(64, 256)
    x[...] = normal(64, 256)
    before = x.copy()
    check(model, [x])
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("tail", ["y = Reshape(r, s)", "y = Identity(r)", "y = Flatten(r)"])
def test_what_is_returned_is_no_part_of_the_arena(tail: str) -> None:
    text = f"g (float[64,256] x) => (float[64,256] y) {{ p = MatMul(x, a) r = Relu(p) {tail} }}"
    executable = compiled(parse(text, {**WEIGHTS, "s": np.array([64, 256])}))
    first = executable.run([normal(64, 256)], 2)[0]
    kept = first.copy()
    executable.run([np.zeros((64, 256), np.float32)], 2)
    np.testing.assert_array_equal(first, kept)
    assert memory_of(executable).outputs == LARGE


def test_an_intermediate_result_may_be_an_output_too() -> None:
    executable = products("r = Relu(q) y = MatMul(r, c)", "float[64,256] y, float[64,256] r, float[64,256] p")
    assert memory_of(executable).outputs == 3 * LARGE
    assert not plan(executable)["buffers"]


def test_an_input_may_be_an_output() -> None:
    text = "g (float[64,256] x) => (float[64,256] y, float[16384] z) { y = Relu(x) z = Reshape(x, s) }"
    model = parse(text, {"s": np.array([-1])})
    executable = check(model, [normal(64, 256)])
    assert plan(executable)["inputs"] == [-1]


def test_inputs_are_copied_into_the_arena_unless_they_are_aligned() -> None:
    text = "g (float[64,256] x) => (float[64,256] y) { p = MatMul(x, a) q = MatMul(p, b) y = Relu(q) }"
    model = parse(text, WEIGHTS)
    executable = compiled(model)
    raw = aligned_empty(LARGE + 64)
    for offset in (0, 4):
        x = raw[offset : offset + LARGE].view(np.float32).reshape(64, 256)
        x[...] = normal(64, 256)
        assert distance(executable.run([x], 2)[0], oracle(model, [x])[0]) < 1e-5


def test_symbolic_sizes_are_laid_out_by_the_run() -> None:
    text = "g (float[n,256] x) => (float[n,256] y) { p = MatMul(x, a) q = MatMul(p, b) r = Add(q, p) y = MatMul(r, c) }"
    model = parse(text, WEIGHTS)
    executable = compiled(model)
    assert executable.memory is None
    arenas = []
    for n in (16, 3, 17, 400, 40, 1):
        x = normal(n, 256)
        assert distance(executable.run([x], 2)[0], oracle(model, [x])[0]) < 1e-5
        memory = memory_of(executable)
        arenas.append(memory.arena)
        assert memory.outputs == in_pages(1024 * n)
        assert memory.least == 3 * 1024 * n - 1024 * n
    assert arenas[0] == arenas[1] == 2 * 1024 * 16
    assert arenas[3] == arenas[4] == arenas[5]  # it does not shrink
    assert 2 * 1024 * 400 <= arenas[3] <= 2 * 1024 * 400 * 17 / 16


def test_partitions_hand_over_what_is_counted() -> None:
    """An operator that only ONNX Runtime has stands between two compiled parts."""
    text = """g (float[64,256] x) => (float[64,256] y) {
        p = MatMul(x, a) u, i, j, k = Unique<axis = 0>(p) q = MatMul(u, b) y = Relu(q) }"""
    model = parse(text, WEIGHTS)
    executable = compiled(model, fallback="onnxruntime")
    x = normal(64, 256)
    assert distance(executable.run([x], 2)[0], oracle(model, [x])[0]) < 1e-5
    memory = memory_of(executable)
    assert not memory.complete
    assert memory.outputs >= 2 * LARGE


def test_nothing_compiled_nothing_known() -> None:
    model = parse("g (float[8] x) => (float[k] y) { y, i, j, n = Unique(x) }")
    executable = compiled(model, fallback="onnxruntime")
    executable.run([normal(8)], 1)
    assert executable.memory is None


def test_a_saved_plan_is_the_same(tmp_path: Path) -> None:
    executable = products(RESIDUAL)
    parts = {}
    for name, part in executable.parts().items():
        path = tmp_path / name
        path.write_bytes(part.read_bytes() if isinstance(part, Path) else bytes(part))
        parts[name] = path
    loaded = get_backend("cpu").load(parts, executable.manifest())
    x = normal(64, 256)
    np.testing.assert_array_equal(loaded.run([x], 2)[0], executable.run([x], 2)[0])
    assert loaded.memory == executable.memory
    assert loaded.manifest() == executable.manifest()


def test_an_arena_grows_and_drops_what_lay_in_the_old_one() -> None:
    slot = {"bytes": ["*", 4, "n"], "first": 0, "last": 1}
    one = {"slots": [slot], "buffers": [{"slot": 0, "shape": ["n"], "dtype": "float32"}], "inputs": [], "outputs": []}
    memory = Memory.from_json({**one, "kernels": [], "offsets": [], "bytes": -1, "complete": True})
    bound: list[list[Array]] = []

    def bind(arrays: Any) -> int:
        bound.append(list(arrays))
        return len(bound)

    storage = Storage([memory, memory], bind)
    assert storage.tensors(0, {"n": 100}) == 1
    assert storage.tensors(0, {"n": 100}) == 1  # nothing has changed
    assert storage.tensors(1, {"n": 5000}) == 2  # the arena grows
    assert storage.bytes >= 20000
    assert storage.tensors(0, {"n": 100}) == 3
    assert np.shares_memory(bound[2][0], bound[1][0])
    assert bound[2][0].shape == (100,)


TAKES, GIVES = Workspace(5000), Workspace(None)


@pytest.mark.parametrize(
    ("calls", "threads", "pages"),
    [
        ([], 2, 0),
        ([[TAKES, GIVES]], 4, 2),  # only the caller
        ([[Workspace(5000, 8), GIVES]], 4, 8),  # every thread
        ([[Workspace(5000, 2), GIVES]], 4, 4),  # two iterations keep two threads busy
        ([[Workspace(5000, 5), GIVES]], 4, 6),  # two, two and one
        ([[TAKES, Workspace(1, 4), GIVES, GIVES]], 2, 2 + 1 + 1),  # one inside the other
        ([[TAKES, GIVES, TAKES, GIVES]], 1, 2),  # one after the other
        ([[TAKES, GIVES], [Workspace(9000), GIVES]], 1, 3),  # a block that is too small is replaced
        ([[TAKES, Workspace(9000), GIVES, GIVES], [TAKES, GIVES]], 1, 5),
        ([[Workspace(["*", "n", 4096]), GIVES]], 1, 3),
    ],
)
def test_scratch_is_what_the_pools_keep(calls: list[list[Workspace]], threads: int, pages: int) -> None:
    assert scratch_bytes(calls, {"n": 3}, threads) == pages * 4096
