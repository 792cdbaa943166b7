"""Sums of products: a kernel for each product and its addition, written over the sum so far."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from backends.relax.sums import sums_apart
from optimizer.executable import Executable
from tests.backends.emitted import normal
from tests.backends.running import check, parse

LARGE = 4 * 64 * 256
"""Bytes of a sum."""
SMALL = 4 * 64 * 32
WEIGHTS = {f"w{i}": normal(256, 32) / 16 for i in range(4)} | {f"v{i}": normal(32, 256) / 6 for i in range(4)}
PARTS = "x = Tanh(i) " + " ".join(
    f"m{i} = MatMul(x, w{i}) t{i} = Tanh(m{i}) p{i} = MatMul(t{i}, v{i})" for i in range(4)
)


def run(sums: str) -> Executable:
    """What is asked for of four products, with the end of a network behind it so that the sum lies in the arena."""
    body = f"g (float[64,256] i) => (float[64,32] y) {{ {PARTS} {sums} y = MatMul(s, w0) }}"
    return check(parse(body, WEIGHTS), [normal(64, 256)])


def arena(executable: Executable) -> int:
    assert executable.memory is not None
    return executable.memory.arena


def with_addition(executable: Executable) -> list[str]:
    """The kernels that add, as they are called."""
    steps: Any = executable.manifest()["steps"]
    found: list[str] = steps[0]["memory"]["kernels"]
    return [name for name in found if "add" in name]


@pytest.mark.parametrize(
    "sums",
    [
        "a = Add(p0, p1) b = Add(a, p2) s = Add(b, p3)",
        "a = Add(p1, p0) b = Add(p2, a) s = Add(p3, b)",
        "a = Add(p0, i) b = Add(a, p1) c = Add(b, p2) s = Add(c, p3)",
    ],
)
def test_each_product_is_added_where_the_sum_is(sums: str) -> None:
    executable = run(sums)
    assert len(with_addition(executable)) == 3 + ("i" in sums)
    # i or x, which is written over it, the sum, and what is multiplied
    assert arena(executable) <= (2 + ("i" in sums)) * LARGE + 2 * SMALL


def module(emit: Callable[[relax.BlockBuilder, relax.Var, list[relax.Var]], relax.Expr]) -> tvm.IRModule:
    """A function of products of `x`, as kernels whose patterns are known."""
    builder = relax.BlockBuilder()
    x, *w = (relax.Var(name, relax.TensorType([8, 8], "float32")) for name in "xabcd")
    with builder.function("main", [x, *w]):
        with builder.dataflow():
            result = builder.emit_output(emit(builder, x, w))
        builder.emit_func_output(result)
    passes = [relax.transform.LegalizeOps(), relax.transform.AnnotateTIROpPattern()]
    return tvm.transform.Sequential(passes)(builder.get())


def views(found: tvm.IRModule) -> int:
    return str(sums_apart(found)["main"].script()).count("R.reshape")


def chain(builder: relax.BlockBuilder, x: relax.Var, w: list[relax.Var], products: int, again: int = -1) -> relax.Expr:
    """x w0 + x w1 + ...; one of the sums is added to itself once more, in the end."""
    total, kept = builder.emit(relax.op.matmul(x, w[0])), None
    for number, weight in enumerate(w[1:products]):
        total = builder.emit(relax.op.add(builder.emit(relax.op.matmul(x, weight)), total))
        kept = total if number == again else kept
    return total if kept is None else builder.emit(relax.op.add(total, kept))


def test_there_is_a_view_for_each_addition_but_of_two_products_none() -> None:
    for products in (1, 2):
        assert views(module(partial(chain, products=products))) == 0
    for products in (3, 4):
        assert views(module(partial(chain, products=products))) == products - 1


def test_a_sum_that_something_else_reads_is_stored_and_needs_no_view() -> None:
    """Of the sum of three, which is read twice, one more is added: a sum of one product."""
    assert views(module(partial(chain, products=4, again=1))) == 2
    assert views(module(partial(chain, products=3, again=0))) == 0


@st.composite
def trees(draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """Sums of the products in any order and bracketing, with other operators between."""
    waiting = draw(st.permutations([f"p{i}" for i in range(4)]))
    lines: list[str] = []
    while len(waiting) > 1:
        left, right = (waiting.pop(-draw(st.integers(1, len(waiting)))) for _ in range(2))
        op = draw(st.sampled_from(["Add", "Add", "Add", "Sub", "Mul"]))
        name = f"r{len(lines)}"
        lines.append(f"{name} = {op}({left}, {right})")
        waiting.append(name)
        if draw(st.booleans()):
            lines.append(f"{name}n = {draw(st.sampled_from(['Tanh', 'Neg']))}({name})")
            waiting[-1] = f"{name}n"
        if len(lines) < 6 and draw(st.integers(0, 5)) == 5:
            waiting.append(draw(st.sampled_from([name, "i", "x"])))
    return f"{' '.join(lines)} s = Identity({waiting[0]})"


@settings(max_examples=8, deadline=None)
@given(trees())
def test_property_results_stay(sums: str) -> None:
    run(sums)
