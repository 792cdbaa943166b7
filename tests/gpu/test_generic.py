"""The generic rule: element-wise chains, reductions, normalisations, softmax, data movement; static and symbolic."""

import numpy as np
import pytest
from tvm import te

from backends.gpu import generic
from backends.gpu.rows import combine_of
from backends.relax.kernel import decode, inline
from optimizer.gpus import GPUS
from tests.backends.running import Array, parse
from tests.gpu.running import check

RANDOM = np.random.default_rng(0)
W64, B64 = (RANDOM.normal(size=64).astype(np.float32) for _ in range(2))
MATRIX = RANDOM.normal(size=(64, 48)).astype(np.float32)
FILTERS = RANDOM.normal(size=(8, 4, 3, 3)).astype(np.float32) / 6

ROWS = {
    "a chain": "a = Exp(x) t = Tanh(a) c = Mul(t, x) d = Abs(c) y = Sqrt(d)",
    "kept twice": "a = Exp(x) s = Add(a, a) y = Mul(s, a)",
    "softmax": "y = Softmax(x)",
    "softmax of another axis": "y = Softmax<axis=0>(x)",
    "layer norm": "y = LayerNormalization<axis=-1>(x, w, b)",
    "sum of rows": "a = Abs(x) s = ReduceSum<keepdims=1>(a, last) y = Div(x, s)",
    "sum of columns": "s = ReduceSum<keepdims=1>(x, first) y = Sub(x, s)",
    "largest of all": "s = ReduceMax<keepdims=0>(x) y = Sub(x, s)",
    "arg max": "i = ArgMax<axis=1>(x) f = Cast<to=1>(i) y = Add(x, f)",
    "transposed": "t = Transpose<perm=[1,0]>(x) u = Neg(t) y = Transpose<perm=[1,0]>(u)",
    "joined": "c = Concat<axis=1>(x, x) y = Slice(c, from, to, axes)",
    "padded": "p = Pad(x, pads) y = Slice(p, one, many, axes)",
    "a product": "p = MatMul(x, m) r = Relu(p) y = MatMul(r, mt)",
    "running sum": "y = CumSum(x, axis1)",
    "chosen": "k = Less(x, zero) y = Where(k, x, zero)",
}
CONSTANTS = {
    "w": W64,
    "b": B64,
    "m": MATRIX,
    "mt": np.ascontiguousarray(MATRIX.T),
    "last": np.array([1]),
    "first": np.array([0]),
    "axis1": np.array(1),
    "from": np.array([32]),
    "to": np.array([96]),
    "axes": np.array([1]),
    "one": np.array([1]),
    "many": np.array([65]),
    "pads": np.array([0, 1, 0, 2]),
    "zero": np.array(0.0, np.float32),
}


def _used(body: str) -> dict[str, Array]:
    arguments = {a.strip() for part in body.split(")") if "(" in part for a in part[part.rindex("(") + 1 :].split(",")}
    return {name: value for name, value in CONSTANTS.items() if name in arguments}


@pytest.mark.parametrize("rows", ["5", "n"])
@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, rows: str) -> None:
    model = parse(f"g (float[{rows},64] x) => (float[{rows},64] y) {{ {ROWS[name]} }}", _used(ROWS[name]))
    counts = [5] if rows == "5" else [5, 1, 300, 2]
    check(model, *([RANDOM.normal(size=(n, 64)).astype(np.float32)] for n in counts))


@pytest.mark.parametrize("name", ["softmax", "sum of rows", "largest of all", "arg max", "running sum", "a chain"])
def test_rows_of_a_symbolic_length(name: str) -> None:
    model = parse(f"g (float[n,s] x) => (float[n,s] y) {{ {ROWS[name]} }}", _used(ROWS[name]))
    check(model, *([RANDOM.normal(size=(3, s)).astype(np.float32)] for s in (1, 7, 256, 1000)))


@pytest.mark.parametrize("size", ["9", "s"])
def test_images(size: str) -> None:
    model = parse(
        f"""g (float[2,4,{size},{size}] x) => (float[2,8,h,v] y, float[2,8,1,1] z, float[2,4,{size},{size}] i)
        {{ c = Conv<pads=[1,1,1,1]>(x, filters) r = Relu(c)
           y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) z = GlobalAveragePool(r)
           i = InstanceNormalization(x, w4, b4) }}""",
        {"filters": FILTERS, "w4": W64[:4].copy(), "b4": B64[:4].copy()},
    )
    sizes = [9] if size == "9" else [9, 14, 6]
    check(model, *([RANDOM.normal(size=(2, 4, n, n)).astype(np.float32)] for n in sizes))


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint8", "int8", "double", "float16", "bool"])
def test_types(dtype: str) -> None:
    one = "Not(x)" if dtype == "bool" else "Add(x, x)"
    model = parse(f"g ({dtype}[n,7] x) => ({dtype}[n,7] y, {dtype}[7,n] z) {{ y = {one} z = Transpose(y) }}")
    numpy = {"double": "float64"}.get(dtype, dtype)
    check(model, [(RANDOM.normal(size=(5, 7)) * 3).astype(numpy) if dtype != "uint8" else np.full((5, 7), 3, numpy)])


def test_nan_stays_in_a_largest() -> None:
    x = RANDOM.normal(size=(4, 300)).astype(np.float32)
    x[1, 250] = np.nan
    model = parse("g (float[4,300] x) => (float[4] y) { y = ReduceMax<keepdims=0>(x, last) }", {"last": np.array([1])})
    found = check(model).run([x], 1)[0]
    assert np.isnan(found[1]) and np.array_equal(np.delete(found, 1), np.delete(x.max(1), 1))


def test_no_elements() -> None:
    model = parse("g (float[n,64] x) => (float[n,64] y) { y = Softmax(x) }")
    assert check(model, [np.zeros((0, 64), np.float32)]).outputs[0].shape == ("n", 64)


def test_a_row_is_one_launch() -> None:
    x = te.placeholder((128, 512), "float32", "x")
    k = te.reduce_axis((0, 512), "k")
    total = te.compute((128,), lambda i: te.sum(x[i, k], axis=k), "total")
    share = te.compute((128, 512), lambda i, j: x[i, j] / total[i], "share")
    kernel = decode(te.create_prim_func([x, share]))
    assert kernel is not None and combine_of(kernel.stages[0]) is not None
    launches = generic.lower(inline(kernel), GPUS["opencl"])
    assert [(launch.name, launch.block, launch.scratch) for launch in launches] == [("share", (256, 1, 1), ())]


def test_what_has_no_rows_in_common_is_a_launch_each() -> None:
    x = te.placeholder((64, 96), "float32", "x")
    k = te.reduce_axis((0, 64), "k")
    total = te.compute((96,), lambda j: te.sum(x[k, j], axis=k), "total")
    share = te.compute((64, 96), lambda i, j: x[i, j] / total[j], "share")
    kernel = decode(te.create_prim_func([x, share]))
    assert kernel is not None
    launches = generic.lower(inline(kernel), GPUS["opencl"])
    assert [launch.name for launch in launches] == ["total", "share"]
    assert [len(launch.scratch) for launch in launches] == [1, 0]
