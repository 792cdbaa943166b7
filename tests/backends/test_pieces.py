"""An axis is cut where its conditions change: right at every remainder, and no condition is left in the loops."""

import numpy as np
import pytest
from tvm import te, tirx

from backends.cpu.schedule import schedule_function
from optimizer.target import Target
from tests.backends.emitted import agrees, normal
from tests.backends.running import parse


@pytest.mark.parametrize("sizes", [(1, 1, 1), (16, 16, 16), (3, 40, 17), (64, 1, 15)])
def test_a_concatenation_along_the_last_axis(sizes: tuple[int, ...]) -> None:
    inputs = ", ".join(f"float[2,{n}] x{i}" for i, n in enumerate(sizes))
    total = sum(sizes)
    model = parse(f"g ({inputs}) => (float[2,{total}] y) {{ t = Concat<axis=1>(x0, x1, x2) y = Tanh(t) }}")
    agrees(model, [normal(2, n) for n in sizes])


def test_padding_of_a_padded_axis() -> None:
    model = parse(
        "g (float[2,30] x) => (float[2,41] y) { t = Pad(x, p, one) y = Pad(t, q) }",
        {"p": np.array([0, 5, 0, 2]), "q": np.array([0, 1, 0, 3]), "one": np.array(1, np.float32)},
    )
    agrees(model, [normal(2, 30)])


def scheduled(*arguments: te.Tensor) -> str:
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    return str(schedule_function(te.create_prim_func(list(arguments), "int64"), cpu))


def test_no_condition_is_left() -> None:
    a, b = te.placeholder((8, 40), "float32", "a"), te.placeholder((8, 24), "float32", "b")
    both = te.compute((8, 64), lambda i, j: tirx.if_then_else(j < 40, a[i, j], b[i, j - 40]), name="both")
    assert "if_then_else" not in scheduled(a, b, both)


def test_a_condition_on_values_stays() -> None:
    a = te.placeholder((8, 64), "float32", "a")
    kept = te.compute((8, 64), lambda i, j: tirx.if_then_else(a[i, j] > 0, a[i, j], tirx.const(0.0, "float32")))
    assert "if_then_else" in scheduled(a, kept)
