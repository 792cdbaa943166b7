"""Indices out of range stop the run; those in range are counted from the front."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import ExecutionError, UnsupportedError
from optimizer.executable import run_executable
from tests.backends.emitted import agrees, normal
from tests.backends.running import Array, compiled, oracle, parse


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


X, U, W = normal(4, 3), normal(2, 3), normal(3, 6)
MODELS: dict[str, tuple[str, list[Array], Array, list[Array]]] = {
    "Gather": (
        "g (float[4,3] x, int64[2] i) => (float[2,3] y) { y = Gather(x, i) }",
        [X],
        ints(-4, 3),
        [ints(0, 4), ints(-5, 0), ints(2**40, 0)],
    ),
    "Gather by int32 on a symbolic axis": (
        "g (float[m,3] x, int32[a,b] i) => (float[a,b,3] y) { y = Gather(x, i) }",
        [X],
        np.array([[0, -4], [3, 1]], np.int32),
        [np.array([[0, 1], [4, 1]], np.int32), np.array([[-5]], np.int32)],
    ),
    "Gather by a scalar": (
        "g (float[4,3] x, int64 i) => (float[3] y) { y = Gather(x, i) }",
        [X],
        np.array(3),
        [np.array(4)],
    ),
    "GatherElements": (
        "g (float[4,3] x, int64[1,3] i) => (float[1,3] y) { y = GatherElements(x, i) }",
        [X],
        np.array([[0, -4, 3]]),
        [np.array([[0, 1, 4]])],
    ),
    "GatherND": (
        "g (float[4,3] x, int64[2,2] i) => (float[2] y) { y = GatherND(x, i) }",
        [X],
        np.array([[3, 2], [-4, -3]]),
        [np.array([[3, 3], [0, 0]]), np.array([[0, 0], [-5, 0]])],
    ),
    "ScatterElements": (
        "g (float[4,3] x, float[2,3] u, int64[2,3] i) => (float[4,3] y) { y = ScatterElements(x, i, u) }",
        [X, U],
        np.array([[0, 1, -4], [1, 3, 1]]),
        [np.array([[0, 1, 2], [1, 4, 1]])],
    ),
    "ScatterND": (
        "g (float[4,3] x, float[2,3] u, int64[2,1] i) => (float[4,3] y) { y = ScatterND(x, i, u) }",
        [X, U],
        np.array([[3], [-4]]),
        [np.array([[3], [4]])],
    ),
    "ReverseSequence": (
        "g (float[4,3] x, int64[3] i) => (float[4,3] y) { y = ReverseSequence<time_axis=0, batch_axis=1>(x, i) }",
        [X],
        ints(4, 1, 2),
        [ints(1, 5, 1)],
    ),
    "NegativeLogLikelihoodLoss": (
        "g (float[3,6] x, int64[3] i) => (float[3] y)"
        ' { y = NegativeLogLikelihoodLoss<reduction="none", ignore_index=-7>(x, i) }',
        [W],
        ints(5, -7, 0),
        [ints(5, -1, 0), ints(6, 0, 0)],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_index_out_of_range_stops_the_run(name: str) -> None:
    body, first, fitting, wrong = MODELS[name]
    model = parse(body)
    executable = compiled(model)
    (wanted,) = oracle(model, [*first, fitting])
    np.testing.assert_allclose(executable.run([*first, fitting], 2)[0], wanted, rtol=1e-6)
    for indices in wrong:
        with pytest.raises(ExecutionError, match="node 'node': an index is out of range of its axis"):
            run_executable(executable, [*first, indices], 2)
    np.testing.assert_allclose(executable.run([*first, fitting], 2)[0], wanted, rtol=1e-6)


def test_positions_and_regions_are_checked_too() -> None:
    rotary = compiled(
        parse(
            "g (float[1,2,3,4] x, float[5,2] c, float[5,2] s, int64[1,3] p) => (float[1,2,3,4] y)"
            " { y = RotaryEmbedding(x, c, s, p) }"
        )
    )
    inputs = [normal(1, 2, 3, 4), normal(5, 2), normal(5, 2)]
    assert np.isfinite(rotary.run([*inputs, np.array([[0, 4, 2]])], 1)[0]).all()
    regions = compiled(
        parse(
            "g (float[2,1,4,4] x, float[1,4] r, int64[1] b) => (float[1,1,2,2] y)"
            " { y = RoiAlign<output_height=2, output_width=2, sampling_ratio=2>(x, r, b) }"
        )
    )
    image, region = normal(2, 1, 4, 4), np.array([[0, 0, 3, 3]], np.float32)
    assert np.isfinite(regions.run([image, region, ints(1)], 1)[0]).all()
    for executable, wrong in ((rotary, [*inputs, np.array([[0, 5, 2]])]), (regions, [image, region, ints(2)])):
        with pytest.raises(ExecutionError, match="an index is out of range"):
            run_executable(executable, wrong, 1)


def test_many_indices_are_checked_by_several_threads() -> None:
    model = parse("g (float[50] x, int64[300,200] i) => (float[300,200] y) { y = Gather(x, i) }")
    executable = compiled(model)
    x, i = normal(50), np.random.default_rng(2).integers(-50, 50, (300, 200))
    np.testing.assert_array_equal(executable.run([x, i], 2)[0], x[i])
    i[299, 7] = 50
    with pytest.raises(ExecutionError, match="an index is out of range"):
        run_executable(executable, [x, i], 2)


def test_constant_indices_need_no_check_and_a_wrong_one_is_refused() -> None:
    body = "g (float[4,3] x) => (float[2,3] y) { y = Gather(x, i) }"
    model = parse(body, {"i": ints(0, 3)})
    agrees(model, [X])
    names = [k.name for k in compiled(model).profile([X], 1, 1)]
    assert names == ["gather"]
    with pytest.raises(UnsupportedError, match="index 4 of an axis of size 4"):
        compiled(parse(body, {"i": ints(0, 4)}))
