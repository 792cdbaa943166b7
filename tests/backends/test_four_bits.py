"""Products with weights of 4 bits: every remainder, layout and instruction set; the weights stay in 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.relax.nibbles import GROUP, block_panels, nibble_panels, shift, zero_panels
from optimizer import load, optimize
from optimizer.errors import ExecutionError
from optimizer.executable import Executable
from tests.backends.bfloat16 import TARGETS, usable
from tests.backends.four_bits import Quantized, distance, normal_floats, quantized
from tests.backends.running import compiled, parse

Array = npt.NDArray[Any]
RNG = np.random.default_rng(23)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def product(weight: Quantized, rows: int, declared: str = "", target: str = "cpu") -> Executable:
    """Compile, run, and demand float32's accuracy."""
    depth, columns = weight.matrix.shape
    node = "y = Gemm<transB=1>(x, d)" if weight.transposed else "y = MatMul(x, d)"
    m = declared or str(rows)
    text = f"g (float[{m},{depth}] x) => (float[{m},{columns}] y) {{ {weight.node} {node} }}"
    executable = compiled(parse(text, weight.initializers), target)
    x = normal(rows, depth)
    (y,) = executable.run([x], 2)
    assert y.dtype == np.float32
    size = np.abs(x).astype(np.float64) @ np.abs(weight.matrix)  # in one column, positive and negative terms may cancel
    assert np.linalg.norm(y - x.astype(np.float64) @ weight.matrix) <= 2e-6 * np.linalg.norm(size)
    return executable


def weight_bytes(executable: Executable) -> int:
    """Of the packed weights."""
    weights = executable.parts()["weights.bin"]
    assert isinstance(weights, np.ndarray)
    return int(weights.nbytes)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    depth=st.integers(1, 300),
    columns=st.integers(1, 150),
    block=st.sampled_from([-1, 0, 16, 32, 64, 128, 256]),
    signed=st.booleans(),
    zero=st.booleans(),
    transposed=st.booleans(),
    target=st.sampled_from(TARGETS),
)
def test_any_size_agrees(
    rows: int, depth: int, columns: int, block: int, signed: bool, zero: bool, transposed: bool, target: str
) -> None:
    weight = quantized(depth, columns, block, signed=signed, zero=zero, transposed=transposed)
    executable = product(weight, rows, target=usable(target))
    words = -(-columns // 64) * 64 * -(-depth // GROUP) * 4
    assert weight_bytes(executable) <= words + words * 8 * 5 // max(min(block, depth), 16) + 1024


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9, 13, 200])
def test_instruction_sets_agree(target: str, rows: int) -> None:
    product(quantized(200, 83, 64, zero=rows % 2 == 1), rows, target=usable(target))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 11, 190, 191, 193, 400])
def test_symbolic_rows_use_every_nest(rows: int) -> None:
    product(quantized(72, 70, 32, signed=False, zero=True), rows, "m")


@pytest.mark.parametrize("scale", ["float16", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("target", TARGETS)
def test_scales_of_half_precision_stay_so(scale: str, rows: int, target: str) -> None:
    executable = product(quantized(128, 128, 16, scale=scale), rows, target=usable(target))
    assert weight_bytes(executable) == 128 * 128 // 2 + 8 * 128 * 2


def test_scales_that_are_stored_in_half_precision_stay_so() -> None:
    weight = quantized(64, 128, scale="float16")
    node = "f = Cast<to=1>(s) " + weight.node.replace("(w, s)", "(w, f)").replace(", output_dtype=1", "")
    text = f"g (float[3,64] x) => (float[3,128] y) {{ {node} y = MatMul(x, d) }}"
    executable = compiled(parse(text, weight.initializers))
    x = normal(3, 64)
    assert distance(executable.run([x], 2)[0], x.astype(np.float64) @ weight.matrix) < 2e-6
    assert weight_bytes(executable) == 64 * 128 // 2 + 2 * 128 * 2


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 20),
    blocks=st.integers(1, 5),
    columns=st.integers(1, 150),
    block=st.sampled_from([0, 16, 64]),
    transposed=st.booleans(),
    doubly=st.booleans(),
    target=st.sampled_from(TARGETS),
)
def test_normal_floats_are_looked_up(
    rows: int, blocks: int, columns: int, block: int, transposed: bool, doubly: bool, target: str
) -> None:
    weight = normal_floats(blocks * (block or 24), columns, block, transposed=transposed, doubly=doubly)
    executable = product(weight, rows, target=usable(target))
    words = -(-columns // 64) * 64 * -(-weight.matrix.shape[0] // GROUP) * 4
    assert weight_bytes(executable) <= words + words * 8 * 5 // max(min(block, weight.matrix.shape[0]), 16) + 2048


@pytest.mark.parametrize("doubly", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("block", [0, 32])
def test_normal_floats_in_every_form(block: int, transposed: bool, doubly: bool) -> None:
    product(normal_floats(96, 70, block, transposed=transposed, doubly=doubly), 3)


def test_a_cast_of_the_unpacked_weight_is_seen_through() -> None:
    weight = quantized(64, 40, scale="float16")
    node = weight.node.replace("d =", "h =").replace(", output_dtype=1", "")
    text = f"g (float[3,64] x) => (float[3,40] y) {{ {node} d = Cast<to=1>(h) y = MatMul(x, d) }}"
    executable = compiled(parse(text, weight.initializers))
    x = normal(3, 64)
    assert distance(executable.run([x], 2)[0], x.astype(np.float64) @ weight.matrix) < 2e-6
    assert weight_bytes(executable) < 64 * 64


def test_a_transposed_weight_is_packed_so() -> None:
    weight = quantized(64, 40, transposed=True)
    text = f"g (float[3,64] x) => (float[3,40] y) {{ {weight.node} t = Transpose<perm=[1,0]>(d) y = MatMul(x, t) }}"
    executable = compiled(parse(text, weight.initializers))
    x = normal(3, 64)
    assert distance(executable.run([x], 2)[0], x.astype(np.float64) @ weight.matrix) < 2e-6
    assert weight_bytes(executable) < 64 * 64


@pytest.mark.parametrize(
    ("shape", "result"), [("64", "40"), ("2,3,64", "2,3,40"), ("1,1,64", "1,1,40"), ("0,64", "0,40")]
)
def test_leading_axes_are_rows(shape: str, result: str) -> None:
    weight = quantized(64, 40)
    text = f"g (float[{shape}] x) => (float[{result}] y) {{ {weight.node} y = MatMul(x, d) }}"
    x = normal(*map(int, shape.split(",")))
    (y,) = compiled(parse(text, weight.initializers)).run([x], 2)
    assert distance(y, x.astype(np.float64) @ weight.matrix) < 2e-6


@pytest.mark.parametrize("rows", [1, 3, 30])
def test_tails_are_done_on_the_sums(rows: int) -> None:
    weight = quantized(96, 100, zero=True)
    bias, residual, x = normal(100), normal(rows, 100), normal(rows, 96)
    text = f"""g (float[{rows},96] x, float[{rows},100] r) => (float[{rows},100] y)
        {{ {weight.node} t = Gemm<alpha=0.5, beta=2.0>(x, d, c) u = Relu(t) y = Add(u, r) }}"""
    executable = compiled(parse(text, {**weight.initializers, "c": bias}))
    (y,) = executable.run([x, residual], 2)
    wanted = np.maximum(0.5 * (x.astype(np.float64) @ weight.matrix) + 2.0 * bias, 0) + residual
    assert distance(y, wanted) < 2e-6
    assert len(executable.profile([x, residual], 2, 1)) == 1


def test_infinities_and_nan_go_where_they_belong() -> None:
    weight = quantized(64, 40)
    x = normal(4, 64)
    x[0, 3], x[1, 5] = np.nan, np.inf
    text = f"g (float[4,64] x) => (float[4,40] y) {{ {weight.node} y = MatMul(x, d) }}"
    (y,) = compiled(parse(text, weight.initializers)).run([x], 2)
    with np.errstate(invalid="ignore"):
        wanted = x.astype(np.float64) @ weight.matrix
    np.testing.assert_allclose(y, wanted.astype(np.float32), rtol=1e-4, atol=1e-5)


def test_sizes_that_do_not_match_are_an_error_of_the_run() -> None:
    weight = quantized(64, 40)
    executable = compiled(
        parse(f"g (float[m,k] x) => (float[m,n] y) {{ {weight.node} y = MatMul(x, d) }}", weight.initializers)
    )
    assert executable.run([normal(3, 64)], 1)[0].shape == (3, 40)
    with pytest.raises(ExecutionError, match="columns of the left and rows of the right factor"):
        executable.run([normal(3, 65)], 1)


class TestWhatIsLeftToOtherKernels:
    """One test for each condition: the result is right, and the weights are not taken in 4 bits."""

    def unmatched(self, text: str, weights: dict[str, Array], x: Array, wanted: Array, codes: int) -> None:
        executable = compiled(parse(text, weights))
        assert distance(executable.run([x], 2)[0], wanted) < 2e-6
        assert weight_bytes(executable) >= codes

    def test_blocks_that_cut_words(self) -> None:
        weight, x = quantized(60, 40, 20), normal(3, 60)
        text = f"g (float[3,60] x) => (float[3,40] y) {{ {weight.node} y = MatMul(x, d) }}"
        self.unmatched(text, weight.initializers, x, x.astype(np.float64) @ weight.matrix, 2400)

    def test_blocks_of_the_other_axis(self) -> None:
        weight, x = quantized(64, 64, 32), normal(3, 64)
        text = f"g (float[3,64] x) => (float[3,64] y) {{ {weight.node} y = Gemm<transB=1>(x, d) }}"
        self.unmatched(text, weight.initializers, x, x.astype(np.float64) @ weight.matrix.T, 4096)

    def test_scales_along_the_reduced_axis(self) -> None:
        weight, x = quantized(64, 64, 0), normal(3, 64)
        text = f"g (float[3,64] x) => (float[3,64] y) {{ {weight.node} y = Gemm<transB=1>(x, d) }}"
        self.unmatched(text, weight.initializers, x, x.astype(np.float64) @ weight.matrix.T, 4096)

    def test_codes_of_eight_bits(self) -> None:
        codes, scale, x = RNG.integers(-99, 99, (64, 40), np.int8), np.full(40, 0.1, np.float32), normal(3, 64)
        text = "g (float[3,64] x) => (float[3,40] y) { d = DequantizeLinear<axis=1>(w, s) y = MatMul(x, d) }"
        self.unmatched(
            text, {"w": codes, "s": scale}, x, x.astype(np.float64) @ (codes * scale.astype(np.float64)), 2560
        )

    def test_more_than_two_axes(self) -> None:
        codes = RNG.integers(-8, 8, (2, 8, 5)).astype(ml_dtypes.int4)
        x = normal(2, 3, 8)
        text = "g (float[2,3,8] x) => (float[2,3,5] y) { d = DequantizeLinear(w, s) y = MatMul(x, d) }"
        wanted = x.astype(np.float64) @ (codes.astype(np.float64) * 0.5)
        self.unmatched(text, {"w": codes, "s": np.array(0.5, np.float32)}, x, wanted, 80)

    @pytest.mark.parametrize("computed", ["s", "z", "w"])
    def test_what_is_not_constant(self, computed: str) -> None:
        weight, x = quantized(64, 40, zero=True), normal(3, 64)
        given_ = weight.initializers[computed]
        kind = "float" if computed == "s" else "int4"
        shape = ",".join(map(str, given_.shape))
        text = f"g (float[3,64] x, {kind}[{shape}] {computed}) => (float[3,40] y) {{ {weight.node} y = MatMul(x, d) }}"
        weights = {name: array for name, array in weight.initializers.items() if name != computed}
        (y,) = compiled(parse(text, weights)).run([x, given_], 2)
        assert distance(y, x.astype(np.float64) @ weight.matrix) < 2e-6

    @pytest.mark.parametrize("change", ["book", "s", "w"])
    def test_normal_floats_of_another_form(self, change: str) -> None:
        weight, x = normal_floats(64, 40), normal(3, 64)
        given_ = dict(weight.initializers)
        if change == "book":
            given_["book"] = np.append(given_["book"], np.float32(2))  # 17 numbers
        elif change == "s":
            given_["s"] = np.full((1, 32, 1), 0.5, np.float32)  # a scale for each place in a block
        else:
            given_["w"] = given_["w"].astype(np.uint8)
        text = f"g (float[3,64] x) => (float[3,40] y) {{ {weight.node} y = MatMul(x, d) }}"
        matrix = given_["book"].astype(np.float64)[given_["w"].astype(np.int64)]
        matrix = (matrix.reshape(2, 32, 40) * given_["s"]).reshape(64, 40)
        self.unmatched(text, given_, x, x.astype(np.float64) @ matrix, 2560)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["blocks", "rows", "normal"])
def test_gather_unpacks_the_rows_that_it_needs(kind: str, target: str) -> None:
    if kind == "normal":
        table = normal_floats(96, 70, transposed=True)
    else:
        table = quantized(96, 70, 32 if kind == "blocks" else 0, zero=kind == "blocks", transposed=True)
    text = f"g (int64[2,n] at) => (float[2,n,96] y) {{ {table.node} y = Gather(d, at) }}"
    executable = compiled(parse(text, table.initializers), usable(target))
    places = np.array([[0, 69, -1], [5, 64, -70]])
    np.testing.assert_allclose(executable.run([places], 2)[0], table.matrix.T[places], rtol=1e-6)
    assert weight_bytes(executable) < 96 * 70
    with pytest.raises(IndexError, match="out of range"):
        executable.run([np.array([[0], [70]])], 2)


def test_a_table_that_is_a_factor_too_is_held_once() -> None:
    table = quantized(64, 128, 32, transposed=True)
    text = f"""g (int64[n] i) => (float[n,128] y) {{ {table.node} e = Gather(d, i) t = Transpose<perm=[1,0]>(d)
        y = MatMul(e, t) }}"""
    executable = compiled(parse(text, table.initializers))
    places = np.array([3, 127, 0])
    (y,) = executable.run([places], 2)
    assert distance(y, table.matrix.T[places] @ table.matrix) < 2e-6
    assert weight_bytes(executable) == 64 * 128 // 2 + 2 * 128 * 4


@pytest.mark.parametrize("axis", [1, -1])
def test_a_gather_of_columns_reads_the_numbers(axis: int) -> None:
    table = quantized(64, 40, 32, transposed=True)
    text = f"g (int64[n] i) => (float[40,n] y) {{ {table.node} y = Gather<axis={axis}>(d, i) }}"
    places = np.array([3, 63, 0])
    (y,) = compiled(parse(text, table.initializers)).run([places], 2)
    np.testing.assert_allclose(y, table.matrix.T[:, places], rtol=1e-6)


def test_a_reader_that_needs_the_numbers_gets_them() -> None:
    weight, x = quantized(64, 40), normal(3, 64)
    text = f"g (float[3,64] x) => (float[3,40] y, float[64,40] e) {{ {weight.node} y = MatMul(x, d) e = Neg(d) }}"
    y, e = compiled(parse(text, weight.initializers)).run([x], 2)
    assert distance(y, x.astype(np.float64) @ weight.matrix) < 2e-6
    assert distance(-e, weight.matrix) < 1e-6


def test_an_output_of_the_graph_is_made() -> None:
    weight, x = quantized(64, 40), normal(3, 64)
    text = f"g (float[3,64] x) => (float[3,40] y, float[64,40] d) {{ {weight.node} y = MatMul(x, d) }}"
    y, d = compiled(parse(text, weight.initializers)).run([x], 2)
    assert distance(y, x.astype(np.float64) @ weight.matrix) < 2e-6
    assert distance(d, weight.matrix) < 1e-6


def test_the_weights_take_half_a_byte() -> None:
    weight = quantized(256, 256, 32)
    assert weight_bytes(product(weight, 3)) == 256 * 256 // 2 + 8 * 256 * 4


@pytest.mark.parametrize("weight", [quantized(512, 512, 64), normal_floats(512, 512, 64)], ids=["int4", "nf4"])
def test_a_saved_model_is_small_and_computes_the_same(weight: Quantized, tmp_path: Path) -> None:
    x = normal(4, 512)
    text = f"g (float[4,512] x) => (float[4,512] y) {{ {weight.node} y = MatMul(x, d) }}"
    wide = "g (float[4,512] x) => (float[4,512] y) { y = MatMul(x, d) }"
    sizes: list[int] = []
    for model in (parse(text, weight.initializers), parse(wide, {"d": weight.matrix.astype(np.float32)})):
        path = tmp_path / f"{len(sizes)}.tersor"
        optimize(model, "cpu", progress=False).save(path)
        sizes.append(path.stat().st_size)
        assert distance(load(path)(x), x.astype(np.float64) @ weight.matrix) < 2e-6
    assert sizes[0] < 0.2 * sizes[1]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_words_hold_eight_rows(signed: bool, transposed: bool) -> None:
    codes = RNG.integers(-8, 8, (21, 7)) if signed else RNG.integers(0, 16, (21, 7))
    packed = nibble_panels(codes.T if transposed else codes, width=4, transposed=transposed, signed=signed)
    assert (packed.shape, packed.itemsize) == ((2, 3, 4), 4)
    for k in range(24):
        for n in range(8):
            code = packed[n // 4, k // 8, n % 4] >> shift(k % 8) & 15
            assert code == (codes[k, n] + 8 * signed if k < 21 and n < 7 else 0)


def test_scales_and_zero_points_of_panels() -> None:
    scale = RNG.random((3, 7)).astype(np.float32)
    packed = block_panels(scale, width=4, transposed=False, blocks=3, columns=7)
    np.testing.assert_array_equal(packed, block_panels(scale.T, width=4, transposed=True, blocks=3, columns=7))
    np.testing.assert_array_equal(packed[1, :, :3], scale[:, 4:])
    assert (packed[1, :, 3] == 0).all()
    one = block_panels(np.array(3, np.float32), width=4, transposed=False, blocks=1, columns=7)
    assert (one.reshape(-1)[:7] == 3).all()
    zeros = zero_panels(np.array([-8, 7, 0]), width=4, transposed=False, blocks=1, columns=3, signed=True)
    assert zeros.reshape(-1).tolist() == [0, 15, 8, 0]
