"""Sizes that only the run knows: what does not fit raises an error, where a kernel would drop or invent elements."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from backends.relax.plan import Plan
from optimizer.errors import ExecutionError, UnsupportedError
from tests.backends.emitted import agrees, normal
from tests.backends.running import Array, check, compiled, parse


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


Shapes = list[tuple[int, ...]]

CASES: dict[str, tuple[str, Shapes, Shapes]] = {
    "reshape": ("g (float[m] x) => (float[2,k] y) { y = Reshape(x, two_rest) }", [(6,)], [(7,)]),
    "reshape to a computed shape": (
        "g (float[m] x, float[n] z) => (float[n] y) { s = Shape(z) a = Reshape(x, s) y = Mul(a, z) }",
        [(5,), (5,)],
        [(6,), (5,)],
    ),
    "squeeze": ("g (float[m,3] x) => (float[3] y) { y = Squeeze(x, zero) }", [(1, 3)], [(2, 3)]),
    "split into given sizes": (
        "g (float[m,2] x) => (float[2,2] a, float[3,2] b) { a, b = Split<axis=0>(x, two_three) }",
        [(5, 2)],
        [(6, 2)],
    ),
    "split into more parts than fit": (
        "g (float[m] x) => (float[a] a, float[b] b, float[c] c) { a, b, c = Split<num_outputs=3>(x) }",
        [(5,)],
        [(1,)],
    ),
    "concat": (
        "g (float[m,2] x, float[n,3] z) => (float[m,5] y) { y = Concat<axis=1>(x, z) }",
        [(4, 2), (4, 3)],
        [(4, 2), (5, 3)],
    ),
    "product": (
        "g (float[2,m] x, float[n,3] z) => (float[2,3] y) { y = MatMul(x, z) }",
        [(2, 4), (4, 3)],
        [(2, 4), (5, 3)],
    ),
    "product with a weight": ("g (float[2,m] x) => (float[2,5] y) { y = MatMul(x, w) }", [(2, 3)], [(2, 4)]),
    "broadcast": ("g (float[m] x, float[4] z) => (float[4] y) { y = Mul(x, z) }", [(4,), (4,)], [(3,), (4,)]),
    "expand": ("g (float[m] x) => (float[2,3] y) { y = Expand(x, two_three) }", [(3,)], [(2,)]),
    "space to depth": (
        "g (float[1,1,m,4] x) => (float[1,4,k,2] y) { y = SpaceToDepth<blocksize=2>(x) }",
        [(1, 1, 6, 4)],
        [(1, 1, 5, 4)],
    ),
    "depth to space": (
        "g (float[1,m,2,2] x) => (float[1,k,4,4] y) { y = DepthToSpace<blocksize=2>(x) }",
        [(1, 8, 2, 2)],
        [(1, 7, 2, 2)],
    ),
}
WEIGHTS = {"two_rest": ints(2, -1), "two_three": ints(2, 3), "zero": ints(0), "w": normal(3, 5)}


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_do_not_fit_are_an_error(name: str) -> None:
    body, fitting, wrong = CASES[name]
    used = {k: v for k, v in WEIGHTS.items() if k in body.replace(",", " ").replace(")", " ").split()}
    model = parse(body, used)
    executable = check(model, [normal(*shape) for shape in fitting])
    with pytest.raises(ExecutionError, match="give inputs whose sizes fit"):
        executable.run([normal(*shape) for shape in wrong], 1)
    check(model, [normal(*shape) for shape in fitting])


@pytest.mark.parametrize("rows", [1, 4])
def test_a_symbolic_size_may_be_one_where_it_is_broadcast(rows: int) -> None:
    model = parse("g (float[m,1] x, float[4,3] z) => (float[4,3] y) { y = Mul(x, z) }")
    agrees(model, [normal(rows, 1), normal(4, 3)])


@pytest.mark.parametrize("sizes", list(itertools.product([1, 5], repeat=4)))
def test_any_of_many_sizes_may_be_one(sizes: tuple[int, ...]) -> None:
    model = parse(
        "g (float[a,2] x, float[b,2] y, float[c,2] z, float[d,2] u) => (float[m,2] r, float[n,2] s) "
        "{ xy = Add(x, y) zu = Mul(z, u) r = Sub(xy, zu) xz = Add(x, z) s = Add(xz, r) }"
    )
    agrees(model, [normal(size, 2) for size in sizes])


@pytest.mark.parametrize("wrong", [(2, 4), (3, 2)])
def test_a_chain_of_broadcasts_that_holds_for_one_batch_is_compiled(wrong: tuple[int, int]) -> None:
    """As PyTorch exports a model from an example of one sequence: [1, batch * tokens, D] and [batch, tokens, D]."""
    layers = " ".join(f"v{i} = Reshape(r{i}, t) r{i + 1} = Add(v{i}, r{i})" for i in range(12))
    model = parse(f"g (float[batch,tokens,4] r0) => (float[a,b,4] r12) {{ {layers} }}", {"t": ints(1, -1, 4)})
    executable = check(model, [normal(1, 5, 4)])
    check(model, [normal(1, 1, 4)])
    plan = Plan.from_json(executable.manifest())
    assert len(json.dumps(plan.derived)) < 3000
    with pytest.raises(ExecutionError, match=r"sizes that are broadcast: .* are not the same"):
        executable.run([normal(*wrong, 4)], 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_quotient_of_sizes_is_a_size(batch: int) -> None:
    """As a mask that nobody says has the batch of the tokens is reshaped to it."""
    model = parse(
        "g (float[b,s] x, float[c,d] mask) => (float[b,m] y) { xs = Shape<end=1>(x) cd = Shape(mask) "
        "all = ReduceProd<keepdims=0>(cd) b0 = Squeeze(xs) rest = Div(all, b0) places = Range(zero, rest, one) "
        "t = Concat<axis=0>(xs, minus) turned = Reshape(mask, t) p = Cast<to=1>(places) y = Add(turned, p) }",
        {"zero": np.array(0), "one": np.array(1), "minus": ints(-1)},
    )
    agrees(model, [normal(batch, 2), normal(batch, 5)])


def test_what_can_be_proved_is_not_checked_by_the_run() -> None:
    model = parse(
        "g (float[m,4] x) => (float[k,2] y, float[m,8] z) { y = Reshape(x, t) z = Concat<axis=1>(x, x) }",
        {"t": ints(-1, 2)},
    )
    executable = compiled(model)
    plan = Plan.from_json(executable.manifest())
    assert [step.checks for step in plan.steps] == [[]]


def test_an_error_names_the_node_and_both_sizes() -> None:
    model = parse("g (float[m] x) => (float[2,k] y) { [halves] y = Reshape(x, t) }", {"t": ints(2, -1)})
    with pytest.raises(ExecutionError, match="node 'halves': numbers of elements: 7 and 6"):
        compiled(model).run([normal(7)], 1)


def test_what_tvm_cannot_type_is_refused() -> None:
    model = parse("g (float[2,3] x, float[3,n] z, float[4] c) => (float[2,4] y) { y = Gemm(x, z, c) }")
    with pytest.raises(UnsupportedError, match="a shape that is known only at run time"):
        compiled(model)
    x, z, c = normal(2, 3), normal(3, 4), normal(4)
    (y,) = compiled(model, fallback="onnxruntime").run([x, z, c], 1)
    np.testing.assert_allclose(y, x @ z + c, rtol=1e-5)
