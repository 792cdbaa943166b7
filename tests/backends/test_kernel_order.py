"""The order of kernels: lower peaks where another order has them, the graph's own elsewhere."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.relax.kernel_order import Task, best_order, peak_of
from optimizer.executable import Executable
from tests.backends.running import check, parse

TASKS = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.integers(1, 6), max_size=3), st.booleans()), min_size=1, max_size=14
)


def graph(drawn: list[tuple[int, list[int], bool]]) -> list[Task]:
    """Tasks that read some of the last ones."""
    tasks = []
    for index, (size, steps, views) in enumerate(drawn):
        reads = tuple(sorted({index - step for step in steps if step <= index}))
        tasks.append(Task(0, reads, True) if views and reads else Task(size, reads))
    return tasks


def in_order(tasks: list[Task], order: list[int]) -> bool:
    at = {task: position for position, task in enumerate(order)}
    complete = sorted(order) == list(range(len(tasks)))
    return complete and all(at[o] < at[i] for i, task in enumerate(tasks) for o in task.reads)


@settings(max_examples=300, deadline=None)
@given(TASKS)
def test_operands_come_first_and_no_order_is_worse_than_the_graph(drawn: list[tuple[int, list[int], bool]]) -> None:
    tasks = graph(drawn)
    order = best_order(tasks)
    assert in_order(tasks, order)
    assert peak_of(tasks, order) <= peak_of(tasks, range(len(tasks)))
    assert best_order(tasks) == order


def test_the_order_of_the_graph_stays_where_none_is_better() -> None:
    chain = [Task(i % 5 + 1, (i - 1,) if i else ()) for i in range(30)]
    assert best_order(chain) == list(range(30))


def test_branches_are_finished_one_by_one() -> None:
    """One value, eight that are large, eight small ones made of these, and their sum."""
    large = [Task(100, (0,)) for _ in range(8)]
    small = [Task(1, (i,)) for i in range(1, 9)]
    tasks = [Task(1, ()), *large, *small, Task(1, tuple(range(9, 17)))]
    assert peak_of(tasks, range(len(tasks))) == 802 - 1
    assert peak_of(tasks, best_order(tasks)) == 1 + 100 + 8 - 1


def test_the_branch_that_needs_the_most_is_first() -> None:
    """Greedily, the small start of the large branch would wait; depth first, its need is seen."""
    tasks = [
        Task(1, ()),
        Task(10, (0,)),  # the small branch, whose result is large
        Task(1, (0,)),  # the large one: its first step is small
        Task(50, (2,)),
        Task(1, (3,)),
        Task(1, (1, 4)),
    ]
    assert peak_of(tasks, range(len(tasks))) == 10 + 1 + 50
    assert peak_of(tasks, best_order(tasks)) == 1 + 1 + 50


def test_a_view_keeps_alive_what_it_shows() -> None:
    tasks = [Task(8, ()), Task(0, (0,), views=True), Task(4, ()), Task(1, (1, 2))]
    assert peak_of(tasks, range(4)) == 8 + 4 + 1


def test_ten_thousand_kernels_take_seconds() -> None:
    chain = [Task(64 * (i % 7 + 1), (i - 1, max(0, i - 9)) if i else ()) for i in range(10_000)]
    begin = time.process_time()
    assert in_order(chain, best_order(chain))
    assert time.process_time() - begin < 10


def fan(width: int) -> Executable:
    """Products that make eight large tensors before the first is used, run and compared with ONNX Runtime."""
    rng = np.random.default_rng(0)
    weights = {f"a{i}": rng.standard_normal((16, width)).astype(np.float32) for i in range(8)}
    weights |= {f"b{i}": rng.standard_normal((width, 16)).astype(np.float32) for i in range(8)}
    wide = " ".join(f"w{i} = MatMul(x, a{i})" for i in range(8))
    narrow = " ".join(f"n{i} = MatMul(w{i}, b{i})" for i in range(8))
    total = f"y = Sum({', '.join(f'n{i}' for i in range(8))})"
    model = parse(f"g (float[32,16] x) => (float[32,16] y) {{ {wide} {narrow} {total} }}", weights)
    return check(model, [rng.standard_normal((32, 16)).astype(np.float32)])


def test_a_model_runs_in_the_better_order() -> None:
    memory = fan(4096).memory
    assert memory is not None
    one = 4 * 32 * 4096
    assert one < memory.arena < 2 * one
