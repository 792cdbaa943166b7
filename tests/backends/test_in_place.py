"""A result over its input: allowed only where every read of an element is proved to come before its write."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest
import tvm_ffi
from tvm import tirx

from backends.relax import in_place
from backends.relax.in_place import Overwriting, reading_result
from backends.relax.loops import (
    BufferLoad,
    BufferStore,
    Expr,
    ForKind,
    IfThenElse,
    Stmt,
    Var,
    i64,
    local,
    loop,
    sequence,
)

N = 64
Body = Callable[[Var, Var], Stmt]


def some(statement: Stmt | None) -> Stmt:
    assert statement is not None
    return statement


def buffer(name: str, size: int | Expr = N, dtype: str = "float32") -> Var:
    return tirx.decl_buffer([i64(size)], dtype, name)


def allowed(body: Body, buffers: tuple[Var, Var] | None = None) -> bool:
    """Whether a kernel from x to y, of `N` elements where nothing else is said, may write y over x."""
    x, y = (buffer("x"), buffer("y")) if buffers is None else buffers
    return Overwriting(tirx.PrimFunc([x, y], body(x, y))).allowed(0, 1)


def over(
    body: Callable[[Var, Var, Expr], Stmt], kind: ForKind = ForKind.SERIAL, extent: int = N, start: int = 0
) -> Body:
    return lambda x, y: some(loop(extent, lambda i: body(x, y, i + start), kind))


def copy(x: Var, y: Var, i: Expr, shift: int = 0) -> Stmt:
    return BufferStore(y, x[i + shift] + x[i], [i])


@pytest.mark.parametrize("kind", [ForKind.SERIAL, ForKind.PARALLEL, ForKind.VECTORIZED])
def test_an_element_read_as_it_is_written(kind: ForKind) -> None:
    assert allowed(over(copy, kind))


def test_an_element_read_after_it_was_written() -> None:
    assert not allowed(over(lambda x, y, i: copy(x, y, i, -1), extent=N - 1, start=1))


def test_an_element_read_before_it_is_written_by_a_later_iteration() -> None:
    ahead = over(lambda x, y, i: copy(x, y, i, 1), extent=N - 1)
    assert allowed(ahead)
    assert not allowed(over(lambda x, y, i: copy(x, y, i, 1), ForKind.PARALLEL, extent=N - 1))


def test_lanes_hold_together_and_one_by_one() -> None:
    """Reading ahead is right either way; reading behind only if the lanes do run together."""
    assert allowed(over(lambda x, y, i: copy(x, y, i, 1), ForKind.VECTORIZED, extent=N - 1))
    assert not allowed(over(lambda x, y, i: copy(x, y, i, -1), ForKind.VECTORIZED, extent=N - 1, start=1))


def test_two_statements_of_one_vector_loop() -> None:
    """All lanes of the first are done before the second begins: it may not read what they wrote."""

    def body(x: Var, y: Var, i: Expr) -> Stmt:
        other = local([N], "float32", "other")
        return sequence([BufferStore(y, x[i], [i]), BufferStore(other, x[i + 1], [i])])

    assert allowed(over(body, extent=N - 1))
    assert not allowed(over(body, ForKind.VECTORIZED, extent=N - 1))


def test_a_wrong_order_that_begins_late() -> None:
    """The first iterations are in order, the last one is not."""

    def body(x: Var, y: Var, i: Expr) -> Stmt:
        return BufferStore(y, x[tirx.Min(i, i64(N - 2))], [i])

    assert not allowed(over(body))


def test_rows_read_whole_before_they_are_written() -> None:
    """A normalization: each row is read twice, by the task that writes it."""

    def kernel(x: Var, y: Var, own: int) -> Stmt:
        total = local([1], "float32", "total")

        def row(r: Expr) -> Stmt:
            reads = loop(8, lambda k: BufferStore(total, BufferLoad(total, [i64(0)]) + x[r * 8 + k], [i64(0)]))
            writes = loop(8, lambda k: BufferStore(y, x[((r + own) % 8) * 8 + k] / total[i64(0)], [r * 8 + k]))
            return sequence([reads, writes])

        return some(loop(8, row, ForKind.PARALLEL))

    assert allowed(lambda x, y: kernel(x, y, 0))
    assert not allowed(lambda x, y: kernel(x, y, 1))


def test_a_result_that_is_summed_up_where_it_lies() -> None:
    def body(x: Var, y: Var) -> Stmt:
        clear = loop(N, lambda i: BufferStore(y, tirx.const(0.0, "float32"), [i]))
        return sequence([clear, loop(N, lambda i: BufferStore(y, y[i] + x[i], [i]))])

    assert not allowed(body)


def branch(condition: Callable[[Expr], Expr]) -> Body:
    """The first half is copied; of the others, each takes the element before it."""

    def body(x: Var, y: Var, i: Expr) -> Stmt:
        return IfThenElse(condition(i), BufferStore(y, x[i], [i]), BufferStore(y, x[i - N // 2], [i]))

    return over(body)


def test_conditions_of_loops_are_decided_and_others_may_be_either() -> None:
    assert allowed(branch(lambda i: i < N))
    assert not allowed(branch(lambda i: i < N // 2))
    flag = buffer("flag", dtype="int64")
    assert not allowed(branch(lambda i: flag[i] < 1))


def test_a_loop_whose_length_depends_on_another() -> None:
    def kernel(x: Var, y: Var, ahead: int) -> Stmt:
        def row(r: Expr) -> Stmt:
            return some(loop(r + 1, lambda k: BufferStore(y, x[r * 8 + k + ahead], [r * 8 + k]), ForKind.SERIAL))

        return some(loop(8, row, ForKind.PARALLEL))

    assert allowed(lambda x, y: kernel(x, y, 0))
    assert not allowed(lambda x, y: kernel(x, y, -1))


def test_a_vector_is_read_before_it_is_written() -> None:
    def body(x: Var, y: Var, i: Expr) -> Stmt:
        lanes = tirx.Ramp(i * 16, i64(1), 16)
        return BufferStore(y, BufferLoad(x, [lanes]), [lanes])

    assert allowed(over(body, extent=N // 16))


def test_the_kernel_then_reads_the_result_alone() -> None:
    """Two names for one memory would break what `tirx.noalias` promises."""
    x, y = buffer("x"), buffer("y")
    kernel = tirx.PrimFunc([x, y], over(copy)(x, y)).with_attr("tirx.noalias", True)
    changed = reading_result(kernel, 0, 1)
    found: list[Var] = []
    tvm_ffi.structural_walk(changed.body, (Var, found.append))
    assert any(v.same_as(y) for v in found)
    assert not any(v.same_as(x) for v in found)
    assert list(changed.params) == [x, y]
    assert changed.attrs["tirx.noalias"]


def first(x: Var, y: Var) -> Stmt:
    return BufferStore(y, tirx.Cast(str(y.dtype), x[i64(0)]), [i64(0)])


def test_the_buffers_must_be_alike() -> None:
    n = Var("n", "int64")
    assert allowed(first, (buffer("x", 1), buffer("y", 1)))
    assert not allowed(first, (buffer("x", 2), buffer("y", 1)))
    assert not allowed(
        lambda x, y: BufferStore(y, x[i64(0), i64(0)], [i64(0)]), (tirx.decl_buffer([1, 1], "float32"), buffer("y", 1))
    )
    assert not allowed(first, (buffer("x", 1, "int32"), buffer("y", 1)))
    assert not allowed(first, (buffer("x", n), buffer("y", n)))
    assert not allowed(first, (buffer("x", 0), buffer("y", 0)))


def while_loop(x: Var, y: Var) -> Stmt:
    return sequence([tirx.While(tirx.const(False, "bool"), BufferStore(y, x[i64(0)], [i64(0)])), over(copy)(x, y)])


def intrinsic(x: Var, y: Var) -> Stmt:
    taken = tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(x[i64(0)])))
    return sequence([taken, over(copy)(x, y)])


def written(x: Var, y: Var) -> Stmt:
    return sequence([BufferStore(x, tirx.const(0.0, "float32"), [i64(0)]), over(copy)(x, y)])


def nested(x: Var, y: Var) -> Stmt:
    return some(
        loop(8, lambda r: over(lambda a, b, i: copy(a, b, r * 8 + i), ForKind.PARALLEL, 8)(x, y), ForKind.PARALLEL)
    )


def late(x: Var, y: Var) -> Stmt:
    return some(loop(N - 1, lambda i: copy(x, y, i), start=1))


def gathered(x: Var, y: Var, i: Expr) -> Stmt:
    return BufferStore(y, x[tirx.Cast("int64", x[i])], [i])


def repeated(x: Var, y: Var) -> Stmt:
    return some(loop(7, lambda _: over(copy)(x, y)))


@pytest.mark.parametrize("body", [while_loop, intrinsic, written, nested, late, over(gathered), repeated])
def test_what_cannot_be_enumerated(body: Body) -> None:
    assert not allowed(body)


def test_a_kernel_that_does_not_read_the_input_or_not_write_the_result() -> None:
    nothing = tirx.const(0.0, "float32")
    assert not allowed(over(lambda x, y, i: BufferStore(y, nothing, [i])))
    assert not allowed(over(lambda x, y, i: BufferStore(local([N], "float32", "z"), x[i], [i])))


def test_large_buffers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "_MOST", N - 1)
    assert not allowed(over(copy))


def test_a_large_buffer_is_enumerated_in_few_arrays() -> None:
    """52 bytes for each element: positions, times, and what they are made of; of 64 bits they took 75."""
    count = 1 << 20
    buffers = buffer("x", count), buffer("y", count)
    tracemalloc.start()
    try:
        assert allowed(over(copy, ForKind.PARALLEL, extent=count), buffers)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60 * count
