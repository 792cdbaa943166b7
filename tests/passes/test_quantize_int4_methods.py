"""quantize-int4: how codes are found."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizer.calibration import observe
from optimizer.errors import InputError
from optimizer.ort_session import OrtSession
from passes.quantization.blocks import Blocks, Floats, Grid, Quantized, output_energy
from passes.quantization.emit import NOTE
from passes.quantization.gptq import Elimination, _factor, gptq
from passes.quantization.hqq import half_quadratic
from passes.quantization.inputs import Inputs, Source, measure
from passes.quantization.methods import best, relative_error
from passes.quantization.nf4 import codebook, normal_float
from passes.quantization.rtn import round_to_nearest, search_scales
from passes.quantize_int4 import QuantizeInt4
from tests.passes.int4_graphs import answers, correlated, model_of, quantized, reference_answers, samples_of

Observe = Callable[[Sequence[str]], Iterator[list[np.ndarray]]]
GRIDS = [
    Grid(symmetric, scale_type) for symmetric in (True, False) for scale_type in ("float32", "float16", "bfloat16")
]
MATRICES = arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 5)),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-3),
)

MANY = 1 << 40
"""Rows of inputs: nothing that they say is chance."""


def weights_of(rows: int, columns: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def block_errors(weights: Floats, found: Quantized) -> Floats:
    return found.blocks.total(np.square(weights - found.dequantized()))


# --- Blocks, and rounding to nearest ---


@pytest.mark.parametrize(
    ("rows", "size", "part", "starts"),
    [(40, 16, None, (0, 16, 32)), (32, 16, None, (0, 16)), (40, 0, None, (0,)), (40, 16, 20, (0, 16, 20, 36))],
)
def test_blocks(rows: int, size: int, part: int | None, starts: tuple[int, ...]) -> None:
    blocks = Blocks.of(rows, size, part)
    assert blocks.starts == starts
    values = weights_of(rows, 3)
    np.testing.assert_allclose(blocks.total(values), [values[rows].sum(axis=0) for rows in blocks.slices()], rtol=1e-5)
    assert [list(blocks.of_row).index(index) for index in range(len(starts))] == list(starts)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@settings(max_examples=50, deadline=None)
@given(weights=MATRICES, size=st.sampled_from([0, 4, 16]))
def test_no_weight_is_off_by_more_than_half_a_step(grid: Grid, weights: Floats, size: int) -> None:
    found = round_to_nearest(weights, Blocks.of(len(weights), size), grid)
    assert grid.lowest <= found.codes.min() <= found.codes.max() <= grid.highest
    # A scale of 16 bits can be rounded down, by half of its last place: at the end of 8 steps that much is cut off.
    slack = {"float32": 1e-5, "float16": 16 * 2.0**-11, "bfloat16": 16 * 2.0**-8}[grid.scale_type]
    steps = np.abs(weights - found.dequantized()) / found.scales[found.blocks.of_row]
    assert steps.max() <= 0.5 + slack


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@settings(max_examples=25, deadline=None)
@given(weights=MATRICES, size=st.sampled_from([0, 16]))
def test_searched_scales_are_never_worse(grid: Grid, weights: Floats, size: int) -> None:
    blocks = Blocks.of(len(weights), size)
    plain, searched = round_to_nearest(weights, blocks, grid), search_scales(weights, blocks, grid)
    assert (block_errors(weights, searched) <= block_errors(weights, plain) * (1 + 1e-5)).all()
    assert grid.lowest <= searched.codes.min() <= searched.codes.max() <= grid.highest
    stored = grid.storable(searched.scales)
    assert (stored == searched.scales).all()


@pytest.mark.parametrize("grid", [Grid(), Grid(symmetric=False)], ids=str)
def test_searched_scales_are_better_and_follow_importance(grid: Grid) -> None:
    weights, blocks = weights_of(128, 600), Blocks.of(128, 64)
    plain, searched = round_to_nearest(weights, blocks, grid), search_scales(weights, blocks, grid)
    assert block_errors(weights, searched).sum() < 0.97 * block_errors(weights, plain).sum()
    importance = np.where(np.arange(128) % 8 == 0, 100, 1).astype(np.float32)
    aware = search_scales(weights, blocks, grid, importance)
    important = np.square(weights - aware.dequantized())[::8].sum()
    assert important < 0.7 * np.square(weights - searched.dequantized())[::8].sum()


def test_columns_are_quantized_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x = weights_of(70, 50), correlated(200, 70)
    inputs, blocks = Inputs(x.T @ x, np.abs(x).mean(axis=0), len(x)), Blocks.of(70, 32)
    whole = best(weights, blocks, Grid(symmetric=False), "gptq", inputs)
    monkeypatch.setattr("passes.quantization.methods._COLUMNS", 16)
    parts = best(weights, blocks, Grid(symmetric=False), "gptq", inputs)
    assert (whole.quantized.codes == parts.quantized.codes).mean() > 0.99  # what is decided by a hair
    assert parts.error == pytest.approx(whole.error, rel=1e-2)
    assert parts.error == pytest.approx(relative_error(weights, parts.quantized.dequantized(), inputs), rel=1e-3)


@pytest.mark.parametrize(("size", "part"), [(32, None), (32, 50), (0, None), (16, 100)])
def test_scales_are_searched_for_in_tiles(size: int, part: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, blocks = weights_of(200, 70), Blocks.of(200, size, part)
    importance = np.square(weights_of(200, 1, 5)[:, 0])
    whole = search_scales(weights, blocks, Grid(symmetric=False), importance)
    monkeypatch.setattr("passes.quantization.blocks._TILE", 64)
    tiles = search_scales(weights, blocks, Grid(symmetric=False), importance)
    np.testing.assert_array_equal(tiles.codes, whole.codes)
    np.testing.assert_array_equal(tiles.scales, whole.scales)


# --- HQQ ---


def test_hqq_gives_way_to_outliers() -> None:
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(64, 200)).astype(np.float32)
    weights[5] *= 6
    blocks = Blocks.of(64, 64)
    for grid in (Grid(), Grid(symmetric=False)):
        plain, found = (method(weights, blocks, grid) for method in (round_to_nearest, half_quadratic))
        error, error_of_plain = (np.abs(weights - each.dequantized()) ** 0.7 for each in (found, plain))
        assert error.sum() < 0.97 * error_of_plain.sum()
        assert (blocks.total(error) <= blocks.total(error_of_plain) * (1 + 1e-5)).all()
        assert grid.lowest <= found.codes.min() <= found.codes.max() <= grid.highest


DISTRIBUTIONS = ("normal", "far from zero", "with outliers", "two heaps")


@pytest.mark.parametrize("grid", [Grid(), Grid(symmetric=False)], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("size", [0, 32, 128])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_the_search_leaves_less_squared_error_than_hqq(name: str, size: int, grid: Grid) -> None:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal((256, 96))
    weights = {
        "normal": normal,
        "far from zero": rng.random((256, 96)) + 1,
        "with outliers": normal + 30 * (rng.random((256, 96)) < 0.002),
        "two heaps": np.where(rng.random((256, 96)) < 0.5, 1, -0.3) + 0.1 * normal,
    }[name].astype(np.float32)
    blocks = Blocks.of(256, size)
    searched, hqq = (method(weights, blocks, grid).dequantized() for method in (search_scales, half_quadratic))
    assert np.square(weights - searched).sum() <= np.square(weights - hqq).sum() * (1 + 1e-5)


# --- GPTQ ---


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(2, 80),
    size=st.sampled_from([0, 16, 32]),
    symmetric=st.booleans(),
    samples=st.integers(1, 100),
)
def test_the_best_is_never_worse_than_rtn(seed: int, rows: int, size: int, symmetric: bool, samples: int) -> None:
    weights, x = weights_of(rows, 20, seed), correlated(samples, rows, seed)
    inputs = Inputs(x.T @ x, np.abs(x).mean(axis=0), len(x))
    blocks, grid = Blocks.of(rows, size), Grid(symmetric)
    plain = round_to_nearest(weights, blocks, grid)
    for method in ("rtn", "gptq", "auto"):
        found = best(weights, blocks, grid, method, inputs).quantized
        errors = [np.linalg.norm(x @ (weights - each.dequantized())) for each in (found, plain)]
        assert errors[0] <= errors[1] * (1 + 1e-3) + 1e-3


@pytest.mark.parametrize("size", [0, 32])
@pytest.mark.parametrize("grid", [Grid(), Grid(symmetric=False), Grid(scale_type="float16")], ids=str)
def test_gptq_is_much_better_on_correlated_inputs(size: int, grid: Grid) -> None:
    weights, x = weights_of(100, 3000), correlated(400, 100)
    gram, blocks = x.T @ x, Blocks.of(100, size)
    plain = round_to_nearest(weights, blocks, grid)
    found = gptq(weights, Elimination.of(gram, MANY), plain, grid)
    assert np.array_equal(found.scales, plain.scales)
    assert output_energy(weights - found.dequantized(), gram) < 0.3 * output_energy(weights - plain.dequantized(), gram)
    exact = float(np.square(x.astype(np.float64) @ (weights - found.dequantized())).sum())
    assert output_energy(weights - found.dequantized(), gram) == pytest.approx(exact, rel=1e-3)


def test_gptq_is_as_the_paper_says_row_by_row() -> None:
    """The plain algorithm: the inverse is updated after each row, which its Cholesky factor does in advance."""
    weights, x, grid = weights_of(70, 9), correlated(300, 70), Grid()
    gram = x.T @ x
    start = round_to_nearest(weights, Blocks.of(70, 16), grid)
    found = gptq(weights, Elimination.of(gram, MANY), start, grid)

    order = np.argsort(-np.diagonal(gram), kind="stable")
    damped = gram.astype(np.float64) + 0.01 * np.diagonal(gram).mean() * np.eye(70)
    inverse = np.linalg.inv(damped)[np.ix_(order, order)]
    rest, codes = weights[order].astype(np.float64), np.zeros((70, 9))
    scales = start.scales[start.blocks.of_row[order]]
    for row in range(70):
        codes[order[row]] = np.clip(np.rint(rest[row] / scales[row]), -8, 7)
        error = (rest[row] - codes[order[row]] * scales[row]) / inverse[row, row]
        rest -= np.outer(inverse[:, row], error)
        inverse = inverse - np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
    # What is decided by a hair can go the other way in float32, and then takes the rows that follow along.
    assert (found.codes == codes).mean() > 0.95


def test_gptq_with_inputs_that_are_always_zero_or_too_few() -> None:
    weights, x = weights_of(64, 10), correlated(3, 64)
    x[:, 10:20] = 0
    choice = best(weights, Blocks.of(64, 16), Grid(), "gptq", Inputs(x.T @ x, np.abs(x).mean(axis=0), len(x)))
    assert np.isfinite(choice.quantized.dequantized()).all()
    silent = best(weights, Blocks.of(64, 16), Grid(), "gptq", Inputs(0 * x.T @ x, 0 * x[0], len(x)))
    assert silent.error == 0


def test_gptq_of_few_rows_loses_no_more_than_rtn_on_others() -> None:
    """16 rows of 128 inputs that hang together, and what is lost on all that there could be."""
    rng, grid, blocks = np.random.default_rng(0), Grid(symmetric=False), Blocks.of(128, 64)
    directions = np.linalg.qr(rng.standard_normal((128, 128)))[0] * np.arange(1, 129) ** -0.25
    x = (rng.standard_normal((16, 128)) @ directions.T).astype(np.float32)
    weights, everything = weights_of(128, 64), (directions @ directions.T).astype(np.float32)
    plain = round_to_nearest(weights, blocks, grid)
    lost = [
        output_energy(weights - each.dequantized(), everything)
        for each in (plain, *(gptq(weights, Elimination.of(x.T @ x, rows), plain, grid) for rows in (16, MANY)))
    ]
    assert lost[1] < 1.1 * lost[0] < lost[2]


def test_the_inverse_factor() -> None:
    """U with UᵀU the inverse, in both precisions."""
    x = correlated(900, 600)
    gram = x.T @ x
    order = np.argsort(-np.diagonal(gram), kind="stable")
    damped = gram.astype(np.float64) + 0.01 * np.diagonal(gram).mean() * np.eye(600)
    wanted = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)]))
    for type_, tolerance in ((np.float64, 1e-5), (np.float32, 1e-2)):
        found = _factor(gram, order, 1.0, type_)
        assert not np.tril(found, -1).any()
        np.testing.assert_allclose(found.T, wanted, atol=tolerance * np.abs(wanted).max())


def test_a_matrix_that_single_precision_takes_for_indefinite(monkeypatch: pytest.MonkeyPatch) -> None:
    gram = correlated(300, 64).T @ correlated(300, 64)
    types: list[object] = []

    def failing(gram: Floats, order: np.ndarray, certain: float, type_: type[np.floating]) -> Floats:
        types.append(type_)
        if type_ is np.float32:
            raise np.linalg.LinAlgError
        return _factor(gram, order, certain, type_)

    monkeypatch.setattr("passes.quantization.gptq._SINGLE_FROM", 64)
    monkeypatch.setattr("passes.quantization.gptq._factor", failing)
    assert Elimination.of(gram, MANY).factor.shape == (64, 64)
    assert types == [np.float32, np.float64]


def test_what_is_known_of_inputs_is_freed_with_them() -> None:
    """Not by the next collection of garbage: `optimize()` puts that off."""
    x = correlated(100, 64)
    inputs = Inputs(x.T @ x, np.abs(x).mean(axis=0), len(x))
    gc.disable()
    try:
        best(weights_of(64, 10), Blocks.of(64, 16), Grid(), "gptq", inputs)
        factor = weakref.ref(inputs.elimination.factor)
        del inputs
        assert factor() is None
    finally:
        gc.enable()


# --- The inputs of layers ---


@pytest.mark.parametrize(
    ("text", "weight", "given"),
    [
        ("g (float[M,32] x) => (float[M,8] y) { y = MatMul(x, w) }", (32, 8), (5, 32)),
        ("g (float[B,M,32] x) => (float[B,M,8] y) { y = MatMul(x, w) }", (32, 8), (2, 5, 32)),
        ("g (float[32,M] x) => (float[M,8] y) { y = Gemm<transA = 1>(x, w) }", (32, 8), (32, 5)),
        ("g (float[M,32] x) => (float[M,8] y) { y = Gemm<transB = 1>(x, w) }", (8, 32), (5, 32)),
        (
            """g (float[B,16,H,W] x) => (float[B,8,P,Q] y) {
                y = Conv<strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]>(x, w) }""",
            (8, 16, 3, 2),
            (2, 16, 9, 7),
        ),
        ("g (float[B,16,W] x) => (float[B,8,Q] y) { y = Conv(x, w) }", (8, 16, 3), (2, 16, 9)),
    ],
)
def test_the_error_is_that_of_the_layer(text: str, weight: tuple[int, ...], given: tuple[int, ...]) -> None:
    model = model_of(text, {"w": weights_of(weight[0], int(np.prod(weight[1:]))).reshape(weight)})
    x = weights_of(given[0], int(np.prod(given[1:])), 2).reshape(given)
    result = quantized(model, QuantizeInt4(method="gptq", block_size=16, samples=samples_of(model, x)))
    (wanted,), (found,) = answers(model, {"x": x}), answers(result, {"x": x})
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert json.loads(result.graph[0].metadata_props[NOTE])["error"] == pytest.approx(error, rel=1e-2)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[B,8,H,W] x) => (float[B,8,P,Q] y) { y = Conv<group = 2>(x, w) }",
        'g (float[B,4,H,W] x) => (float[B,8,P,Q] y) { y = Conv<auto_pad = "SAME_UPPER">(x, w) }',
    ],
)
def test_layers_without_statistics_are_judged_by_their_weights(text: str) -> None:
    model = model_of(text, {"w": weights_of(8, 36).reshape(8, 4, 3, 3)})
    x = weights_of(2, 8 * 25 if "group" in text else 4 * 25).reshape(2, -1, 5, 5)
    result = quantized(model, QuantizeInt4(samples=samples_of(model, x)))
    assert json.loads(result.graph[0].metadata_props[NOTE])["method"] in ("rtn", "mse")


def test_data_that_make_a_layer_infinite_or_empty() -> None:
    model = model_of("g (float[M,8] x) => (float[M,8] y) { a = Exp(x) y = MatMul(a, w) }", {"w": weights_of(8, 8)})
    with pytest.raises(InputError, match="'a' is NaN, infinite or too large on the calibration data"):
        QuantizeInt4(block_size=16, samples=samples_of(model, np.full((2, 8), 1e3, np.float32)))(model.clone())
    with pytest.raises(InputError, match="calibration data gives no rows of 'a'"):
        QuantizeInt4(block_size=16, samples=samples_of(model, np.ones((0, 8), np.float32)))(model.clone())


def test_statistics_are_of_all_samples() -> None:
    model = model_of("g (float[M,8] x) => (float[M,8] y) { y = MatMul(x, w) }", {"w": weights_of(8, 8)})
    parts = [weights_of(rows, 8, rows) for rows in (3, 5)]
    (found,) = measure(partial(observe, model, samples=samples_of(model, *parts)), [(Source("x"),)])
    whole = np.concatenate(parts)
    np.testing.assert_allclose(found.gram, whole.T @ whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.magnitude, np.abs(whole).mean(axis=0), rtol=1e-5)


# --- Layer by layer ---


def deep(layers: int = 4, size: int = 64) -> ir.Model:
    """Layers one behind the other, each with its own weight."""
    steps = " ".join(f"h{i} = MatMul({'x' if not i else f'a{i - 1}'}, w{i}) a{i} = Tanh(h{i})" for i in range(layers))
    weights = {f"w{i}": weights_of(size, size, i) / np.float32(8) for i in range(layers)}
    return model_of(f"g (float[M,{size}] x) => (float[M,{size}] a{layers - 1}) {{ {steps} }}", weights)


def test_groups_bound_the_memory_and_later_ones_see_the_quantized_prefix() -> None:
    model = deep()
    samples = samples_of(model, correlated(300, 64))
    one, many = (quantized(model, QuantizeInt4(samples=samples, max_statistics_bytes=limit)) for limit in (1 << 30, 1))
    x = correlated(300, 64)
    (wanted,), (together,), (in_turn,) = (answers(each, {"x": x}) for each in (model, one, many))
    assert not np.array_equal(together, in_turn)
    for found in (together, in_turn):
        assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(wanted)


def test_layers_that_read_the_same_value_share_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[M,64] x) => (float[M,8] y, float[M,8] z) { y = MatMul(x, w) z = MatMul(x, v) }"
    model = model_of(text, {"w": weights_of(64, 8), "v": weights_of(64, 8, 2)})
    asked: list[int] = []

    def counting(observe: Observe, wanted: list[tuple[Source, ...]]) -> list[Inputs]:
        asked.append(len(wanted))
        return measure(observe, wanted)

    monkeypatch.setattr("passes.quantization.int4_run.measure", counting)
    quantized(model, QuantizeInt4(samples=samples_of(model, correlated(50, 64)), max_statistics_bytes=1))
    assert asked == [1]


def test_nothing_is_run_twice_that_stands_in_front_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = deep(), list[int]()
    load = OrtSession.from_model

    def counting(part: ir.Model, num_threads: int) -> OrtSession:
        sizes.append(sum(node.op_type == "MatMul" for node in part.graph))
        return load(part, num_threads=num_threads)

    monkeypatch.setattr(OrtSession, "from_model", counting)
    quantized(model, QuantizeInt4(samples=samples_of(model, correlated(100, 64)), max_statistics_bytes=1))
    assert sizes == [1, 1, 1]  # what a layer reads is there already: it was kept when the one before it was finished
    sizes.clear()
    quantized(model, QuantizeInt4(method="awq", samples=samples_of(model, correlated(100, 64)), max_statistics_bytes=1))
    assert sizes == [1, 2, 3]


class Killed(Exception):
    """Stands for what ends a run in the middle."""


def test_a_run_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = deep()
    samples = samples_of(model, correlated(100, 64))
    wanted = quantized(model, QuantizeInt4(samples=samples, max_statistics_bytes=1))

    def stop(done: int, total: int, name: str) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        QuantizeInt4(samples=samples, max_statistics_bytes=1, resume=str(tmp_path), progress=stop)(model.clone())
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["0.npz", "1.npz"]
    (folder / "1.npz").write_bytes((folder / "1.npz").read_bytes()[:100])  # as a disk might lose the end of it

    computed: list[float] = []

    def counted(*given: object) -> object:
        computed.append(1)
        return best(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("passes.quantization.int4_run.best", counted)
    resumed = quantized(model, QuantizeInt4(samples=samples, max_statistics_bytes=1, resume=str(tmp_path)))
    assert len(computed) == 3
    x = correlated(50, 64, 9)
    assert np.array_equal(answers(resumed, {"x": x})[0], answers(wanted, {"x": x})[0])

    computed.clear()
    other = samples_of(model, correlated(100, 64, 1))
    quantized(model, QuantizeInt4(samples=other, max_statistics_bytes=1, resume=str(tmp_path)))
    assert len(computed) == 4  # other data, another result


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"resume='.*file' is no folder that can be written: Not a directory"):
        QuantizeInt4(resume=str(tmp_path / "file"))(deep(1))


def test_a_large_image_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source("x", kernel=(3, 2), strides=(2, 1), pads=(1, 0, 0, 1), dilations=(1, 2))
    image = weights_of(2 * 4, 17 * 9).reshape(2, 4, 17, 9)
    (whole, _) = source.rows(image)
    monkeypatch.setattr("passes.quantization.inputs._PATCHES_BYTES", 1)
    parts = list(source.rows(image[:1]))
    assert len(parts) == 8
    gram = sum(part.T @ part for part in parts)
    np.testing.assert_allclose(gram, whole.T @ whole, rtol=1e-4, atol=1e-4)


# --- 2. NF4 ---


def test_the_codebook_is_that_of_qlora() -> None:
    """The properties that the paper derives it from: an exact zero, both ends, and equally likely numbers between."""
    values = codebook()
    assert len(values) == 16
    assert (np.diff(values) > 0).all()
    assert values[0] == -1 and values[7] == 0 and values[15] == 1
    drawn = np.random.default_rng(0).normal(size=100_000)
    outermost = 1.8481  # the quantile of 1 - (1/32 + 1/30) / 2 of the normal distribution
    index = np.searchsorted((values[1:] + values[:-1]) / 2, drawn / outermost)
    shares = np.bincount(index, minlength=16)[1:-1] / len(drawn)
    assert shares.min() > 0.8 / 16
    assert shares.max() < 1.3 / 16
    assert values[8] == pytest.approx(0.0796, abs=1e-4)  # QLoRA, appendix E, prints them all
    assert values[1] == pytest.approx(-0.6962, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(weights=MATRICES)
def test_normal_floats_are_the_nearest(weights: Floats) -> None:
    found = normal_float(weights, Blocks.of(len(weights), 0))
    scales = found.scales()[found.blocks.of_row]
    every = codebook()[:, None, None] * scales
    nearest = np.abs(weights - every).min(axis=0)
    np.testing.assert_allclose(np.abs(weights - found.dequantized()), nearest, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("g (float[M,96] x) => (float[M,40] y) { y = MatMul(x, w) }", (96, 40)),
        ("g (float[M,96] x) => (float[M,40] y) { y = Gemm<transB = 1>(x, w) }", (40, 96)),
    ],
)
@pytest.mark.parametrize("size", [0, 32])
def test_normal_floats_run_in_onnx_runtime_and_in_the_reference(text: str, weight: tuple[int, int], size: int) -> None:
    weights = weights_of(*weight)
    model = model_of(text, {"w": weights})
    result = quantized(model, QuantizeInt4(method="nf4", block_size=size))
    assert not any(
        value.dtype == ir.DataType.FLOAT and value.const_value is not None and value.const_value.nbytes > 64
        for value in result.graph.initializers.values()
    )
    x = weights_of(5, 96, 4)
    (found,), (plain,) = answers(result, {"x": x}), reference_answers(result, {"x": x})
    matrix = weights if "MatMul" in text else weights.T
    wanted = x @ normal_float(matrix, Blocks.of(96, size)).dequantized()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(plain, wanted, rtol=1e-4, atol=1e-4)
    again = QuantizeInt4(method="nf4", block_size=size)(result.clone())
    assert not again.modified


def test_normal_floats_suit_normal_weights() -> None:
    weights, blocks = weights_of(256, 100), Blocks.of(256, 64)
    error, of_rtn = (
        np.linalg.norm(weights - found.dequantized())
        for found in (normal_float(weights, blocks), round_to_nearest(weights, blocks, Grid()))
    )
    assert error < 0.95 * of_rtn


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        ("g (float[M,96] x) => (float[M,40] y) { y = MatMul(x, w) }", (96, 40),
         "NF4 needs blocks of equal length, and 96 is no multiple of 64"),
        ("g (float[1,4,3,3] x) => (float[1,8,1,1] y) { y = Conv(x, w) }", (8, 4, 3, 3), "NF4 is for matrices only"),
    ],
)  # fmt: skip
def test_what_normal_floats_cannot_do(text: str, weight: tuple[int, ...], reason: str) -> None:
    result = QuantizeInt4(method="nf4")(model_of(text, {"w": np.ones(weight, np.float32)}))
    assert not result.modified
    assert [miss.reason for miss in result.near_misses] == [reason]  # type: ignore[attr-defined]
