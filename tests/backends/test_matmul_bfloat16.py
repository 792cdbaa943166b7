"""Matrix products of bfloat16, in pairs along K: every remainder, batches, symbolic sizes, tails, instruction sets."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.relax.packing import panels
from optimizer.errors import ExecutionError
from optimizer.target import CPUS, Target
from tests.backends.bfloat16 import BFLOAT16, TARGETS, Array, agrees, native, random, usable
from tests.backends.running import compiled, parse

RNG = np.random.default_rng(17)


def doubled(*arrays: Array) -> list[Array]:
    return [x.astype(np.float64) for x in arrays]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 40),
    k=st.integers(1, 70),
    n=st.integers(1, 120),
    packed=st.booleans(),
    target=st.sampled_from(TARGETS),
)
def test_any_size_agrees(m: int, k: int, n: int, packed: bool, target: str) -> None:
    a, b, c = random(RNG, m, k), random(RNG, k, n), random(RNG, n)
    x, w, z = doubled(a, b, c)
    sizes = f"bfloat16[{m},{k}] a" if packed else f"bfloat16[{m},{k}] a, bfloat16[{k},{n}] b"
    text = f"g ({sizes}) => (bfloat16[{m},{n}] y) {{ t = MatMul(a, b) u = Add(t, c) y = Relu(u) }}"
    wanted, size = np.maximum(x @ w + z, 0), np.abs(x) @ np.abs(w) + np.abs(z)
    given_ = ({"b": b, "c": c}, [a]) if packed else ({"c": c}, [a, b])
    agrees(text, *given_, wanted, size, k + 1, usable(target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("packed", [True, False])
def test_instruction_sets_agree(target: str, packed: bool) -> None:
    a, b, c, r = random(RNG, 37, 65), random(RNG, 65, 83), random(RNG, 83), random(RNG, 37, 83)
    x, w, z, s = doubled(a, b, c, r)
    inputs = "bfloat16[37,65] a, bfloat16[37,83] r" + ("" if packed else ", bfloat16[65,83] b")
    text = f"g ({inputs}) => (bfloat16[37,83] y) {{ t = MatMul(a, b) u = Add(t, c) y = Add(u, r) }}"
    size = np.abs(x) @ np.abs(w) + np.abs(z) + np.abs(s)
    given_ = ({"b": b, "c": c}, [a, r]) if packed else ({"c": c}, [a, r, b])
    agrees(text, *given_, x @ w + z + s, size, 67, usable(target))


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 15, 16, 17, 33])
def test_symbolic_rows_use_every_remainder(rows: int) -> None:
    a, b = random(RNG, rows, 25), random(RNG, 25, 50)
    x, w = doubled(a, b)
    text = "g (bfloat16[s,25] a) => (bfloat16[s,50] y) { y = MatMul(a, b) }"
    agrees(text, {"b": b}, [a], x @ w, np.abs(x) @ np.abs(w), 25)


@pytest.mark.parametrize("keys", [1, 2, 15, 16, 31, 32, 40])
def test_symbolic_depth_and_columns(keys: int) -> None:
    q, k, v = random(RNG, 2, 3, 5, keys), random(RNG, 2, 3, keys, 8), random(RNG, 2, 3, 8, keys)
    a, b, c = doubled(q, k, v)
    text = "g (bfloat16[2,3,s,t] q, bfloat16[2,3,t,8] k) => (bfloat16[2,3,s,8] y) { y = MatMul(q, k) }"
    agrees(text, {}, [q, k], a @ b, np.abs(a) @ np.abs(b), keys)
    text = "g (bfloat16[2,3,8,s] k, bfloat16[2,3,s,t] q) => (bfloat16[2,3,8,t] y) { y = MatMul(k, q) }"
    agrees(text, {}, [v, k], c @ b, np.abs(c) @ np.abs(b), keys)


@pytest.mark.parametrize("constant", [False, True])
def test_batches_broadcast_on_either_side(constant: bool) -> None:
    a, b = random(RNG, 4, 1, 5, 7), random(RNG, 3, 7, 9)
    x, w = doubled(a, b)
    inputs = "bfloat16[4,1,5,7] a" + ("" if constant else ", bfloat16[3,7,9] b")
    text = f"g ({inputs}) => (bfloat16[4,3,5,9] y) {{ y = MatMul(a, b) }}"
    agrees(text, {"b": b} if constant else {}, [a] if constant else [a, b], x @ w, np.abs(x) @ np.abs(w), 7)


@pytest.mark.parametrize("transposed_a", [0, 1])
@pytest.mark.parametrize("transposed_b", [0, 1])
@pytest.mark.parametrize("constant", [False, True])
def test_gemm_rounds_once(transposed_a: int, transposed_b: int, constant: bool) -> None:
    a, b, c = random(RNG, 9, 5), random(RNG, 5, 21), random(RNG, 21)
    x, w, z = doubled(a, b, c)
    a, b = (m.T.copy() if t else m for m, t in ((a, transposed_a), (b, transposed_b)))
    shape_a, shape_b = (",".join(map(str, m.shape)) for m in (a, b))
    inputs = f"bfloat16[{shape_a}] a" + ("" if constant else f", bfloat16[{shape_b}] b")
    text = f"""g ({inputs}) => (bfloat16[9,21] y)
        {{ y = Gemm<alpha=0.75, beta=2.0, transA={transposed_a}, transB={transposed_b}>(a, b, c) }}"""
    weights = {"c": c} | ({"b": b} if constant else {})
    size = 0.75 * np.abs(x) @ np.abs(w) + 2 * np.abs(z)
    agrees(text, weights, [a] if constant else [a, b], 0.75 * x @ w + 2 * z, size, 8)


@pytest.mark.parametrize(("a", "b"), [((6,), (6, 7)), ((5, 7), (7,)), ((7,), (7,)), ((2, 5, 6), (6,))])
def test_vectors_follow_numpy(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    left, right = random(RNG, *a), random(RNG, *b)
    x, w = doubled(left, right)
    wanted = np.asarray(x @ w)
    shapes = [",".join(map(str, s)) for s in (a, b, wanted.shape)]
    text = f"g (bfloat16[{shapes[0]}] a, bfloat16[{shapes[1]}] b) => (bfloat16[{shapes[2]}] y) {{ y = MatMul(a, b) }}"
    agrees(text, {}, [left, right], wanted, np.abs(x) @ np.abs(w), a[-1])


@pytest.mark.parametrize("packed", [True, False])
def test_an_infinity_meets_no_padding(packed: bool) -> None:
    a, b = np.ones((3, 5), BFLOAT16), np.ones((5, 17), BFLOAT16)
    a[0, 4], a[1, 3], a[2, 0] = np.inf, np.nan, -np.inf
    inputs = "bfloat16[3,5] a" + ("" if packed else ", bfloat16[5,17] b")
    text = f"g ({inputs}) => (bfloat16[3,17] y) {{ y = MatMul(a, b) }}"
    (y,) = compiled(parse(text, {"b": b} if packed else {})).run([a] if packed else [a, b], 1)
    np.testing.assert_array_equal(y.astype(np.float32), np.repeat([[np.inf], [np.nan], [-np.inf]], 17, 1))


def test_sizes_that_do_not_match_are_an_error_of_the_run() -> None:
    executable = compiled(
        parse("g (bfloat16[m,k] a) => (bfloat16[m,n] y) { y = MatMul(a, b) }", {"b": random(RNG, 5, 6)})
    )
    assert executable.run([random(RNG, 3, 5)], 1)[0].shape == (3, 6)
    with pytest.raises(ExecutionError, match="columns of the left and rows of the right factor"):
        executable.run([random(RNG, 3, 6)], 1)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("target", TARGETS)
def test_pairs_are_multiplied_by_the_processor_that_can(target: str, packed: bool, tmp_path: Path) -> None:
    cpu = Target.parse(usable(target)).cpu
    assert cpu is not None
    if target == "cpu" and not cpu.bfloat16:
        pytest.skip("this machine lacks AVX512_BF16")
    inputs = "bfloat16[32,64] a" + ("" if packed else ", bfloat16[64,48] b")
    model = parse(
        f"g ({inputs}) => (bfloat16[32,48] y) {{ y = MatMul(a, b) }}", {"b": random(RNG, 64, 48)} if packed else {}
    )
    assert native(compiled(model, target), tmp_path) == cpu.bfloat16


@pytest.mark.parametrize("name", ["znver4", "znver5", "sapphirerapids"])
def test_named_processors_have_the_instruction(name: str, tmp_path: Path) -> None:
    assert CPUS[name].bfloat16
    model = parse("g (bfloat16[8,64] a) => (bfloat16[8,48] y) { y = MatMul(a, b) }", {"b": random(RNG, 64, 48)})
    assert native(compiled(model, f"cpu:{name}"), tmp_path)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
@pytest.mark.parametrize("transposed", [False, True])
def test_two_rows_share_one(k: int, transposed: bool) -> None:
    matrix = np.arange(1, k * 7 + 1, dtype=np.float32).reshape(k, 7).astype(ml_dtypes.bfloat16)
    packed = panels(matrix.T if transposed else matrix, width=4, transposed=transposed, together=2)
    assert packed.shape == (2, -(-k // 2), 8)
    for row in range(2 * packed.shape[1]):
        for column in range(8):
            expected = matrix[row, column] if row < k and column < 7 else 0
            assert packed[column // 4, row // 2, column % 4 * 2 + row % 2] == expected
