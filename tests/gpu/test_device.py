"""Device code: parameters, offsets, scratch buffers, types that a device lacks."""

import numpy as np
import pytest
from tvm import tirx

from backends.gpu.device import device_code, opencl_target, with_offsets
from backends.gpu.launch import Launch, barrier, scheduled
from backends.relax.loops import BufferLoad, BufferStore, Expr, IfThenElse, Stmt, allocate, i64, sequence
from tests.backends.running import parse
from tests.gpu.running import check, compiled

RANDOM = np.random.default_rng(0)
ONE = i64(1)


def _two_launches(names: tuple[str, str, str]) -> tirx.PrimFunc:
    """Reverse blocks of 64 in shared memory, then add one; between them lies a buffer of the device."""
    n = tirx.Var("n", "int64")
    x, y, between = (tirx.decl_buffer([n * 64], "float32", name) for name in names)

    def first(block: tuple[Expr, Expr, Expr], thread: tuple[Expr, Expr, Expr]) -> Stmt:
        shared = tirx.decl_buffer([i64(64)], "float32", "shared", scope="shared")
        put = BufferStore(shared, BufferLoad(x, [block[0] * 64 + thread[0]]), [thread[0]])
        take = BufferStore(between, BufferLoad(shared, [63 - thread[0]]), [block[0] * 64 + thread[0]])
        return allocate([shared], sequence([put, barrier(), take]))

    def second(block: tuple[Expr, Expr, Expr], thread: tuple[Expr, Expr, Expr]) -> Stmt:
        place = block[0] * 32 + thread[0]
        store = BufferStore(y, BufferLoad(between, [place]) + tirx.const(1, "float32"), [place])
        return IfThenElse(place < n * 64, store, None)

    launches = [
        Launch("first", (n, ONE, ONE), (64, 1, 1), first, (between,)),
        Launch("second", (n * 2, ONE, ONE), (32, 1, 1), second),
    ]
    return scheduled(tirx.PrimFunc([x, y], tirx.Evaluate(tirx.const(0, "int32"))), launches)


@pytest.mark.parametrize("names", [("x", "y", "between"), ("same", "same", "same")])
def test_what_the_host_passes(names: tuple[str, str, str]) -> None:
    code = device_code({"k": _two_launches(names)}, opencl_target(256, 32 << 10))
    first, second = code.starts["k"]
    assert [(p.position, p.scratch) for p in first.parameters if p.size is None] in (
        [(0, -1), (-1, 0)],
        [(-1, 0), (0, -1)],
    )
    assert sorted((p.position, p.scratch) for p in second.parameters if p.size is None) == [(-1, 0), (1, -1)]
    assert (first.block, second.block, first.shared_bytes) == ((64, 1, 1), (32, 1, 1), 256)
    assert first.grid == ("n", 1, 1) and code.scratch["k"] == (["*", 4, ["*", "n", 64]],)


def test_pointers_get_offsets() -> None:
    head = "__kernel void f(__global float* restrict a, long n)"
    assert with_offsets(f"{head};\n{head} {{\n}}\n") == (
        "__kernel void f(__global float* a_base, long a_offset, long n) {\n"
        "  __global float* restrict a = a_base + a_offset;\n}\n"
    )


def test_float16_needs_no_extension() -> None:
    model = parse("g (float16[n,64] x) => (float16[n,64] y, float[n,64] z) { y = Softmax(x) z = Cast<to=1>(x) }")
    executable = check(model)
    x = RANDOM.normal(size=(4, 64)).astype(np.float16)
    y, z = executable.run([x], 1)
    exact = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(1, keepdims=True)
    assert np.abs(y - exact).max() <= exact.max() * 2.0**-10
    assert np.array_equal(z, x.astype(np.float32))


def test_a_conversion_rounds_to_float16() -> None:
    model = parse("g (float[64] x) => (float[64] y) { h = Cast<to=10>(x) y = Cast<to=1>(h) }")
    x = RANDOM.normal(size=64).astype(np.float32)
    assert np.array_equal(compiled(model).run([x], 1)[0], x.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float", "double"])
@pytest.mark.parametrize("constant", [np.log(16), -1 / 3, 1 + 2.0**-23, 1e-30 / 3, 65504.0, -0.0, 2.0**-126])
def test_constants_keep_all_digits(dtype: str, constant: float) -> None:
    exact = np.array(constant, np.float32 if dtype == "float" else np.float64)
    model = parse(f"g ({dtype}[n,5] x) => ({dtype}[n,5] y) {{ y = Mul(x, c) }}", {"c": exact})
    (found,) = compiled(model).run([np.ones((3, 5), exact.dtype)], 1)
    assert np.array_equal(found, np.broadcast_to(exact, (3, 5)))


def test_functions_and_literals_of_the_language() -> None:
    names = ["Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Erf", "Round", "Sinh", "Tan", "Floor", "Ceil"]
    body = " ".join(f"y{i} = {name}(x)" for i, name in enumerate(names))
    outputs = ", ".join(f"float[8] y{i}" for i in range(len(names)))
    model = parse(f"g (float[8] x) => ({outputs}) {{ {body} }}")
    x = np.array([0.5, -0.5, 0.25, 1.0, -1.0, 0.0, 0.75, 2.5], np.float32)
    with np.errstate(all="ignore"):
        exact = [
            np.arccos,
            np.arccosh,
            np.arcsin,
            np.arcsinh,
            np.arctan,
            np.arctanh,
            np.cosh,
            None,
            np.rint,
            np.sinh,
            np.tan,
        ]
        found = compiled(model).run([x], 1)
        for ours, function in zip(found, exact, strict=False):
            if function is not None:
                np.testing.assert_allclose(ours, function(x), rtol=1e-5, atol=1e-6)
    least = parse("g (int32[n,7] x) => (int64[n] y) { y = ArgMax<axis=1, keepdims=0, select_last_index=1>(x) }")
    assert compiled(least).run([np.zeros((3, 7), np.int32)], 1)[0].tolist() == [6, 6, 6]
