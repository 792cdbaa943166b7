"""No kernel reads or writes outside its operands, whatever symbolic sizes the inputs turn out to have."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.errors import ExecutionError, UnsupportedError
from optimizer.executable import run_executable
from tests.backends.emitted import normal
from tests.backends.running import Array, compiled, parse

PER_CHANNEL = normal(4)
POSITIVE = np.abs(PER_CHANNEL) + 1


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.int64)


CASES: dict[str, tuple[str, list[Array], list[Array]]] = {
    "BatchNormalization": (
        "g (float[2,c,3] x) => (float[2,c,3] y) { y = BatchNormalization(x, p, p, p, p) }",
        [normal(2, 4, 3)],
        [normal(2, 6, 3)],
    ),
    "LayerNormalization": (
        "g (float[2,c] x) => (float[2,c] y) { y = LayerNormalization(x, p) }",
        [normal(2, 4)],
        [normal(2, 6)],
    ),
    "DequantizeLinear": (
        "g (int8[2,c] x) => (float[2,c] y) { y = DequantizeLinear<axis=1>(x, p) }",
        [np.ones((2, 4), np.int8)],
        [np.ones((2, 6), np.int8)],
    ),
    "Conv": ("g (float[1,c,9] x) => (float[1,2,k] y) { y = Conv(x, w) }", [normal(1, 4, 9)], [normal(1, 6, 9)]),
    "ConvTranspose": (
        "g (float[1,c,9] x) => (float[1,2,k] y) { y = ConvTranspose(x, t) }",
        [normal(1, 4, 9)],
        [normal(1, 6, 9)],
    ),
    "Attention": (
        "g (float[1,2,q,4] x, float[1,2,k,4] z, float[1,2,l,4] v) => (float[1,2,q,4] y) { y = Attention(x, z, v) }",
        [normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 5, 4)],
        [normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(1, 2, 4, 4)],
    ),
    "Attention with a mask": (
        "g (float[1,2,q,4] x, float[1,2,k,4] z, float[a,b] m) => (float[1,2,q,4] y) { y = Attention(x, z, z, m) }",
        [normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(3, 5)],
        [normal(1, 2, 3, 4), normal(1, 2, 5, 4), normal(2, 5)],
    ),
    "RotaryEmbedding": (
        "g (float[1,2,s,4] x, float[1,t,2] c) => (float[1,2,s,4] y) { y = RotaryEmbedding(x, c, c) }",
        [normal(1, 2, 3, 4), normal(1, 3, 2)],
        [normal(1, 2, 3, 4), normal(1, 2, 2)],
    ),
    "GatherElements": (
        "g (float[a,3] x, int64[b,3] k) => (float[b,3] y) { y = GatherElements<axis=1>(x, k) }",
        [normal(4, 3), zeros(4, 3)],
        [normal(4, 3), zeros(5, 3)],
    ),
    "GatherND": (
        "g (float[a,3] x, int64[b,1] k) => (float[b] y) { y = GatherND<batch_dims=1>(x, k) }",
        [normal(4, 3), zeros(4, 1)],
        [normal(4, 3), zeros(5, 1)],
    ),
    "ScatterElements": (
        "g (float[4,c] x, int64[2,a] k, float[2,a] u) => (float[4,c] y) { y = ScatterElements(x, k, u) }",
        [normal(4, 3), zeros(2, 3), normal(2, 3)],
        [normal(4, 3), zeros(2, 5), normal(2, 5)],
    ),
    "ScatterND": (
        "g (float[4,3] x, int64[a,1] k, float[b,3] u) => (float[4,3] y) { y = ScatterND(x, k, u) }",
        [normal(4, 3), zeros(2, 1), normal(2, 3)],
        [normal(4, 3), zeros(3, 1), normal(2, 3)],
    ),
    "GridSample": (
        "g (float[a,1,4,4] x, float[b,2,2,2] g) => (float[a,1,2,2] y) { y = GridSample(x, g) }",
        [normal(2, 1, 4, 4), normal(2, 2, 2, 2)],
        [normal(2, 1, 4, 4), normal(3, 2, 2, 2)],
    ),
    "ReverseSequence": (
        "g (float[4,b] x, int64[c] t) => (float[4,b] y) { y = ReverseSequence<time_axis=0, batch_axis=1>(x, t) }",
        [normal(4, 3), zeros(3)],
        [normal(4, 5), zeros(3)],
    ),
    "TopK": ("g (float[a] x) => (float[3] y, int64[3] k) { y, k = TopK(x, three) }", [normal(4)], [normal(2)]),
}
WEIGHTS = {"p": POSITIVE, "w": normal(2, 4, 3), "t": normal(4, 2, 3), "three": np.array([3])}


@pytest.mark.parametrize("name", CASES)
def test_sizes_that_lead_outside_are_an_error(name: str) -> None:
    body, fitting, wrong = CASES[name]
    inputs = body[: body.index("=>")]
    used = body[body.index("{") :].replace(",", " ").replace(")", " ").replace("(", " ").split()
    weights = {k: v for k, v in WEIGHTS.items() if k in used and f" {k}" not in inputs.replace(")", " ")}
    executable = compiled(parse(body, weights))
    run_executable(executable, fitting, 1)
    with pytest.raises(ExecutionError, match=r"node 'node': .*give inputs whose sizes fit"):
        run_executable(executable, wrong, 1)
    run_executable(executable, fitting, 1)


def test_static_sizes_that_lead_outside_are_refused() -> None:
    model = parse("g (float[2,6] x, float[4] p) => (float[2,6] y) { y = LayerNormalization(x, p) }")
    with pytest.raises(UnsupportedError, match="the elements that are read of an axis"):
        compiled(model)


def test_a_guarded_read_needs_no_check() -> None:
    body = "g (float[2,m,3] c, float[2,2,3] u) => (float[2,m,3] y) { y = TensorScatter(c, u) }"
    executable = compiled(parse(body, opset=24))
    cache, update = normal(2, 5, 3), normal(2, 2, 3)
    (y,) = executable.run([cache, update], 1)
    np.testing.assert_array_equal(y, np.concatenate([update, cache[:, 2:]], 1))
