"""Parallel loops of few rounds become serial; others stay as they are."""

from __future__ import annotations

import pytest
from tvm import te, tirx
from tvm.tirx import ForKind

from backends.cpu.schedule import schedule_function
from backends.cpu.small_loops import PARALLEL_STEPS, without_small_parallel_loops
from backends.relax.procedure import fetch, nest, procedure, store
from optimizer.target import Target

CPU = Target.parse("cpu").cpu


def _copied(*sizes: int | tirx.Var) -> tirx.PrimFunc:
    """A procedure that copies an array, its first axis in parallel."""
    x = te.placeholder(sizes, "float32", "x")

    def body(inputs: list[tirx.Var], outputs: list[tirx.Var]) -> tirx.Stmt:
        return nest(sizes, lambda at: store(outputs[0], fetch(inputs[0], at), at), parallel=(0,))

    (y,) = procedure("copied", [x], [(x.shape, "float32")], body)
    return te.create_prim_func([x, y])


def _kinds(function: tirx.PrimFunc) -> list[str]:
    assert CPU is not None
    text = schedule_function(function, CPU).script()
    return [kind for kind in ("parallel", "serial") if f"T.{kind}(" in text]


def test_few_rounds_run_in_one_thread() -> None:
    assert "parallel" not in _kinds(_copied(9, 7))


@pytest.mark.parametrize("sizes", [(PARALLEL_STEPS, 1), (8, PARALLEL_STEPS // 8), (tirx.Var("n", "int64"), 2)])
def test_many_rounds_or_how_many_only_the_run_knows_stay_parallel(sizes: tuple[int | tirx.Var, ...]) -> None:
    assert "parallel" in _kinds(_copied(*sizes))


def test_a_while_loop_inside_stays_parallel() -> None:
    buffer = tirx.decl_buffer([4], "int64", "b")
    var = tirx.Var("i", "int64")
    zero = tirx.const(0, "int64")
    endless = tirx.While(tirx.BufferLoad(buffer, [var]) > zero, tirx.BufferStore(buffer, zero, [var]))
    loop = tirx.For(var, zero, tirx.const(4, "int64"), ForKind.PARALLEL, endless)
    assert without_small_parallel_loops(loop).kind == ForKind.PARALLEL
