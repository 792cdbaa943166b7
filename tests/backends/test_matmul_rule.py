"""Matrix products on register tiles: every remainder, batches, symbolic sizes, tails, instruction sets."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.cpu.tiles import Tiles
from optimizer.errors import ExecutionError
from optimizer.target import CPUS, Target
from tests.backends.running import check, compiled, distance, parse

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(m=st.integers(1, 40), k=st.integers(1, 70), n=st.integers(1, 120), packed=st.booleans())
def test_any_size_agrees(m: int, k: int, n: int, packed: bool) -> None:
    a, b, c = normal(m, k), normal(k, n), normal(n)
    tail = "{ t = MatMul(a, b) u = Add(t, c) y = Relu(u) }"
    if packed:
        check(parse(f"g (float[{m},{k}] a) => (float[{m},{n}] y) {tail}", {"b": b, "c": c}), [a])
    else:
        check(parse(f"g (float[{m},{k}] a, float[{k},{n}] b) => (float[{m},{n}] y) {tail}", {"c": c}), [a, b])


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 15, 16, 17, 33])
def test_symbolic_rows_use_every_remainder(rows: int) -> None:
    model = parse("g (float[s,24] a) => (float[s,50] y) { t = MatMul(a, b) y = Tanh(t) }", {"b": normal(24, 50) * 0.1})
    check(model, [normal(rows, 24)])


def test_symbolic_rows_in_blocks_and_shares_agree() -> None:
    b = normal(576, 96) * 0.1
    executable = compiled(parse("g (float[n,s,576] a) => (float[n,s,96] y) { y = MatMul(a, b) }", {"b": b}))
    for sizes in ((4, 49), (1, 3), (2, 150), (1, 601)):  # several tiles, less than one, two blocks, three
        a = normal(*sizes, 576)
        assert distance(executable.run([a], 2)[0], a @ b) <= 1e-5


@pytest.mark.parametrize("keys", [1, 15, 16, 31, 32, 40])
def test_symbolic_columns_and_depth(keys: int) -> None:
    model = parse(
        """g (float[2,3,s,8] q, float[2,3,8,t] k, float[2,3,t,8] v) => (float[2,3,s,8] y)
        { p = MatMul(q, k) y = MatMul(p, v) }"""
    )
    check(model, [normal(2, 3, 5, 8), normal(2, 3, 8, keys), normal(2, 3, keys, 8)])


def test_batches_broadcast_on_either_side() -> None:
    model = parse("g (float[4,1,5,6] a, float[3,6,7] b) => (float[4,3,5,7] y) { y = MatMul(a, b) }")
    check(model, [normal(4, 1, 5, 6), normal(3, 6, 7)])


@pytest.mark.parametrize(("a", "b"), [((6,), (6, 7)), ((5, 6), (6,)), ((6,), (6,)), ((2, 5, 6), (6,))])
def test_vectors_follow_numpy(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    shape = ",".join(map(str, np.matmul(np.zeros(a), np.zeros(b)).shape))
    left, right = (",".join(map(str, s)) for s in (a, b))
    check(
        parse(f"g (float[{left}] a, float[{right}] b) => (float[{shape}] y) {{ y = MatMul(a, b) }}"),
        [normal(*a), normal(*b)],
    )


@pytest.mark.parametrize("transposed_a", [0, 1])
@pytest.mark.parametrize("transposed_b", [0, 1])
@pytest.mark.parametrize("constant", [False, True])
def test_gemm(transposed_a: int, transposed_b: int, constant: bool) -> None:
    a = normal(9, 5).T.copy() if transposed_a else normal(9, 5)
    b = normal(5, 11).T.copy() if transposed_b else normal(5, 11)
    shape_a, shape_b = (",".join(map(str, x.shape)) for x in (a, b))
    inputs = f"float[{shape_a}] a" + ("" if constant else f", float[{shape_b}] b")
    text = f"""g ({inputs}) => (float[9,11] y)
        {{ y = Gemm<alpha=0.5, beta=2.0, transA={transposed_a}, transB={transposed_b}>(a, b, c) }}"""
    weights = {"c": normal(11)} | ({"b": b} if constant else {})
    check(parse(text, weights), [a] if constant else [a, b])


@pytest.mark.parametrize("target", ["cpu:generic", "cpu:x86-64-v3", "cpu:x86-64-v4"])
def test_instruction_sets_agree(target: str) -> None:
    features = {"cpu:x86-64-v4": 64, "cpu:x86-64-v3": 32}
    here = Target.parse("cpu").cpu
    if here is None or here.vector_bytes < features.get(target, 0):
        pytest.skip("this machine lacks the instructions")
    text = "g (float[37,65] a) => (float[37,83] y) { t = MatMul(a, b) u = Add(t, c) y = Gelu(u) }"
    check(parse(text, {"b": normal(65, 83), "c": normal(83)}), [normal(37, 65)], target)


@pytest.mark.parametrize("name", ["generic", "x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("rows", [1, 7, 49, 128, 197, None])
def test_tiles_fit_in_the_registers(name: str, rows: int | None) -> None:
    cpu = Target.parse(f"cpu:{name}").cpu
    assert cpu is not None
    tiles = Tiles(cpu)
    width = tiles.panel_width(rows, 768, 768)
    vectors = width // tiles.lanes()
    assert tiles.fits(tiles.tile_rows(rows, vectors), vectors)


def test_many_rows_get_tiles_near_the_peak() -> None:
    cpu = Target.parse("cpu:znver5").cpu
    assert cpu is not None
    tiles = Tiles(cpu)
    vectors = tiles.panel_width(128, 3072, 768) // tiles.lanes()
    rows = tiles.tile_rows(128, vectors)
    assert rows * vectors / 2 / tiles.step_cycles(rows, vectors) == 1.0


@pytest.mark.parametrize(
    ("depth", "together"), [(1024, 8), (4096, 8), (3072, 8), (512, 16), (1536, 16), (768, 33), (1000, 268), (65, 134)]
)
def test_rows_that_share_a_set_of_the_cache_are_few(depth: int, together: int) -> None:
    tiles = Tiles(CPUS["znver5"])
    apart = depth * 4
    assert tiles.rows_together(apart) == together  # of 12 lines a set, and of 64 sets
    assert tiles.tile_rows(512, 1, apart) <= together
    assert tiles.tile_rows(512, 1) > 16
    assert tiles.tile_rows(512, 1, 4096) <= 8


def test_rows_a_page_apart_are_multiplied_right() -> None:
    check(
        parse("g (float[37,1024] a) => (float[37,16] y) { y = MatMul(a, b) }", {"b": normal(1024, 16)}),
        [normal(37, 1024)],
    )


def test_a_weight_is_packed_once() -> None:
    text = "g (float[4,32] a) => (float[4,48] y) { t = MatMul(a, b) y = Gemm(t, c) }"
    executable = check(parse(text, {"b": normal(32, 48), "c": normal(48, 48)}), [normal(4, 32)])
    sources = [weight["source"] for weight in executable.manifest()["weights"]]  # type: ignore[attr-defined]
    assert sorted(sources) == ["b", "c"]


def test_sizes_that_do_not_match_are_an_error_of_the_run() -> None:
    executable = compiled(parse("g (float[m,k] a, float[l,n] b) => (float[m,n] y) { y = MatMul(a, b) }"))
    a, b = normal(3, 4), normal(4, 5)
    assert np.allclose(executable.run([a, b], 1)[0], a @ b, atol=1e-5)
    for wrong in (normal(3, 5), normal(5, 5)):
        with pytest.raises(ExecutionError, match="columns of the left and rows of the right factor"):
            executable.run([a, wrong], 1)


@pytest.mark.parametrize(("perm", "kept"), [("[1,0]", False), ("[0,1]", True)])
def test_a_weight_with_other_users_is_transposed_when_it_is_packed(perm: str, kept: bool) -> None:
    text = f"""g (int64[3] i, float[3,40] a) => (float[3,40] row, float[3,40] y)
        {{ row = Gather(w, i) t = Transpose<perm={perm}>(w) y = MatMul(a, t) }}"""
    inputs = [np.array([0, 7, 39]), normal(3, 40)]
    executable = check(parse(text, {"w": normal(40, 40)}), inputs)
    weights: list[dict[str, Any]] = executable.manifest()["weights"]  # type: ignore[assignment]
    packed = [dict(weight["options"]).get("transposed") for weight in weights if weight["transform"] == "panels"]
    assert packed == ([] if kept else [True])
