"""Attention and RotaryEmbedding: masks and where they are aligned, rows that see nothing, caches, grouped heads."""

import numpy as np
import pytest

from tests.backends.emitted import agrees, emitted, normal
from tests.backends.running import check, parse

OUT = "(float[1,4,3,8] y)"


def heads(key_heads: int = 4, keys: int = 5) -> list[np.ndarray]:
    return [normal(1, 4, 3, 8), normal(1, key_heads, keys, 8), normal(1, key_heads, keys, 8)]


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_grouped_heads(key_heads: int) -> None:
    model = parse(
        f"g (float[1,4,3,8] q, float[1,{key_heads},5,8] k, float[1,{key_heads},5,8] v)"
        f" => {OUT} {{ y = Attention(q, k, v) }}"
    )
    agrees(model, heads(key_heads))


def test_packed_heads_and_a_smaller_value() -> None:
    model = parse(
        "g (float[2,3,24] q, float[2,5,12] k, float[2,5,10] v) => (float[2,3,20] y)"
        " { y = Attention<q_num_heads=4, kv_num_heads=2, scale=0.3>(q, k, v) }"
    )
    agrees(model, [normal(2, 3, 24), normal(2, 5, 12), normal(2, 5, 10)])


@pytest.mark.parametrize("past", [0, 4])
def test_the_causal_mask_begins_after_the_past(past: int) -> None:
    model = parse(
        "g (float[1,2,3,8] q, float[1,2,3,8] k, float[1,2,3,8] v, float[1,2,p,8] pk, float[1,2,p,8] pv)"
        " => (float[1,2,3,8] y, float[1,2,t,8] nk, float[1,2,t,8] nv)"
        " { y, nk, nv = Attention<is_causal=1>(q, k, v, , pk, pv) }"
    )
    agrees(model, [normal(1, 2, n, 8) for n in (3, 3, 3, past, past)])


def test_a_row_that_sees_no_key_is_zero() -> None:
    model = parse(
        f"g (float[1,4,3,8] q, float[1,4,5,8] k, float[1,4,5,8] v, bool[3,5] m)"
        f" => {OUT} {{ y = Attention(q, k, v, m) }}"
    )
    mask = np.ones((3, 5), bool)
    mask[1] = False
    inputs = [*heads(), mask]
    (y,) = emitted(model, inputs)
    assert (y[:, :, 1] == 0).all()
    agrees(model, inputs)


def test_additive_masks_broadcast_and_may_hold_minus_infinity() -> None:
    model = parse(
        f"g (float[1,4,3,8] q, float[1,4,5,8] k, float[1,4,5,8] v, float[4,3,5] m) => {OUT}"
        " { y = Attention<is_causal=1, softcap=2.0>(q, k, v, m) }"
    )
    mask = normal(4, 3, 5)
    mask[:, :, 0], mask[1, :, 2] = -np.inf, -65504
    agrees(model, [*heads(), mask])


def test_a_short_mask_hides_the_rest() -> None:
    model = parse(
        f"g (float[1,4,3,8] q, float[1,4,5,8] k, float[1,4,5,8] v, bool[3,2] m)"
        f" => {OUT} {{ y = Attention(q, k, v, m) }}",
        opset=24,
    )
    agrees(model, [*heads(), np.ones((3, 2), bool)])


@pytest.mark.parametrize(("own", "wanted"), [("1,1,1,5", [1, 1, 3, 5]), ("1,5", [1, 4, 3, 5]), ("3,1", [3, 5])])
def test_a_mask_is_read_as_it_was_before_it_was_stretched(own: str, wanted: list[int]) -> None:
    """But not one whose keys were: a mask of fewer keys hides the others."""
    model = parse(
        f"g (float[1,4,3,8] q, float[1,4,5,8] k, float[1,4,5,8] v, float[{own}] m) => {OUT}"
        " { e = Expand(m, sizes) y = Attention(q, k, v, e) }",
        {"sizes": np.array(wanted)},
    )
    executable = check(model, [*heads(), normal(*map(int, own.split(",")))])
    kernels = executable.manifest()["steps"][0]["memory"]["kernels"]  # type: ignore[index]
    assert any("expand" in name for name in kernels) == (own == "3,1")


def test_lengths_of_a_cache_outside() -> None:
    model = parse(
        "g (float[2,2,3,8] q, float[2,2,6,8] k, float[2,2,6,8] v, int64[2] n) => (float[2,2,3,8] y)"
        " { y = Attention<is_causal=1>(q, k, v, , , , n) }",
        opset=24,
    )
    agrees(model, [normal(2, 2, 3, 8), normal(2, 2, 6, 8), normal(2, 2, 6, 8), np.array([5, 2])])


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_intermediate_scores(mode: int) -> None:
    model = parse(
        f"g (float[1,4,3,8] q, float[1,4,5,8] k, float[1,4,5,8] v, float[3,5] m)"
        f" => (float[1,4,3,8] y, float[1,4,3,5] s)"
        f" {{ y, a, b, s = Attention<qk_matmul_output_mode={mode}, softcap={0.0 if mode == 0 else 3.0}>(q, k, v, m) }}"
    )
    agrees(model, [*heads(), normal(3, 5)])


def test_symbolic_lengths() -> None:
    model = parse(
        "g (float[b,s,16] q, float[b,t,16] k, float[b,t,16] v, float[b,1,s,t] m) => (float[b,s,16] y)"
        " { y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v, m) }"
    )
    agrees(model, [normal(2, 7, 16), normal(2, 17, 16), normal(2, 17, 16), normal(2, 1, 7, 17)])


def test_large_scores_do_not_overflow() -> None:
    model = parse(
        f"g (float[1,4,3,8] q, float[1,4,5,8] k, float[1,4,5,8] v) => {OUT} {{ y = Attention<scale=100.0>(q, k, v) }}"
    )
    agrees(model, heads(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("rotated", [0, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_rotary_embedding(interleaved: int, rotated: int, packed: bool) -> None:
    shape = (2, 5, 24) if packed else (2, 3, 5, 8)
    half = (rotated or 8) // 2
    dims = ",".join(map(str, shape))
    heads_ = ", num_heads=3" if packed else ""
    model = parse(
        f"g (float[{dims}] x, float[20,{half}] c, float[20,{half}] s, int64[2,5] p) => (float[{dims}] y)"
        f" {{ y = RotaryEmbedding<interleaved={interleaved}, rotary_embedding_dim={rotated}{heads_}>(x, c, s, p) }}"
    )
    positions = np.array([[0, 1, 2, 3, 19], [7, 7, 0, 4, 5]])
    agrees(model, [normal(*shape), normal(20, half), normal(20, half), positions])


def test_rotary_embedding_without_positions() -> None:
    model = parse(
        "g (float[2,3,n,8] x, float[2,n,4] c, float[2,n,4] s) => (float[2,3,n,8] y) { y = RotaryEmbedding(x, c, s) }"
    )
    agrees(model, [normal(2, 3, 6, 8), normal(2, 6, 4), normal(2, 6, 4)])
