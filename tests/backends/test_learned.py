"""Learned scalars are arguments: layers that differ in nothing else share a kernel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from backends.relax.learned import learned_scalars
from tests.backends.emitted import normal
from tests.backends.running import Array, check, parse


def network(layers: int, weights: dict[str, Array]) -> str:
    """Hard swishes, each scaled and shifted by scalars of its own."""
    lines, last = [], "x"
    for i in range(layers):
        lines.append(
            f"a{i} = Add({last}, three) c{i} = Clip(a{i}, zero, six) h{i} = Mul({last}, c{i})"
            f" d{i} = Div(h{i}, six) s{i} = Mul(d{i}, scale{i}) m{i} = MatMul(s{i}, w{i}) y{i} = Add(m{i}, shift{i})"
        )
        last = f"y{i}"
        weights |= {f"scale{i}": np.array(1.1 + i, np.float32), f"shift{i}": np.array([0.3 * i - 1], np.float32)}
        weights[f"w{i}"] = normal(8, 8)
    weights |= {n: np.array(v, np.float32) for n, v in (("three", 3), ("six", 6), ("zero", 0))}
    return f"g (float[5,8] x) => (float[5,8] {last}) {{ {' '.join(lines)} }}"


def test_layers_that_differ_in_a_scalar_share_a_kernel() -> None:
    weights: dict[str, Array] = {}
    body = network(6, weights)
    executable = check(parse(body, weights), [normal(5, 8)])
    kernels = executable.profile([normal(5, 8)], 1, 1)
    assert max(k.calls for k in kernels) >= 5
    assert len(kernels) <= 4


def test_numbers_of_the_architecture_stay_in_the_code() -> None:
    weights: dict[str, Array] = {}
    graph = ir.from_proto(parse(network(6, weights), weights)).graph
    learned = learned_scalars(graph, weights)
    assert learned == {f"{name}{i}" for i in range(6) for name in ("scale", "shift")}


@pytest.mark.parametrize("change", ["few layers", "another operator"])
def test_what_is_not_learned(change: str) -> None:
    weights: dict[str, Array] = {}
    model = parse(network(3 if change == "few layers" else 6, weights), weights)
    if change == "another operator":
        model.graph.node[-1].op_type = "Max"
    assert "shift5" not in learned_scalars(ir.from_proto(model).graph, weights)


def test_learned_scalars_of_images_with_their_channels_last() -> None:
    weights: dict[str, Array] = {"w": normal(8, 3, 3, 3)}
    lines, last = ["c = Conv(x, w)"], "c"
    for i in range(4):
        shape = (1,) * (i % 2 * 4)
        weights |= {f"s{i}": np.full(shape, 0.5 + i, np.float32), f"b{i}": np.full(shape, i - 1.5, np.float32)}
        lines.append(f"m{i} = Mul({last}, s{i}) t{i} = Tanh(m{i}) y{i} = Add(t{i}, b{i})")
        last = f"y{i}"
    check(
        parse(f"g (float[1,3,7,7] x) => (float[1,8,5,5] {last}) {{ {' '.join(lines)} }}", weights), [normal(1, 3, 7, 7)]
    )
