"""Attention of a few queries: keys read once for all heads that share them, in ranges where there are few heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.executable import Executable
from tests.backends.running import compiled, distance, parse
from tests.backends.test_attention_rule import check, expected, forbidden, inputs, model

Array = npt.NDArray[Any]
TARGETS = ("cpu", "cpu:x86-64-v3", "cpu:generic")


def decoder(
    declared: str = "", given_mask: str = "", attributes: str = "", rows: str = "s", target: str = "cpu", size: int = 16
) -> Executable:
    """Four heads over two key heads, as they lie in a cache, [B, H, T, D]."""
    return compiled(
        parse(
            f"""g (float[b,4,{rows},{size}] q, float[b,2,t,{size}] k, float[b,2,t,{size}] v{declared})
            => (float[b,4,{rows},{size}] y) {{ y = Attention{attributes}(q, k, v{given_mask}) }}""",
            opset=24,
        ),
        target,
    )


def cache(batch: int, rows: int, keys: int, size: int = 16) -> list[Array]:
    rng = np.random.default_rng(rows * 1000 + keys)
    shapes = ((batch, 4, rows, size), (batch, 2, keys, size), (batch, 2, keys, size))
    return [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]


def wanted(arrays: Sequence[Array], bias: Array | float = 0.0) -> Array:
    """`expected`, of heads that lie first."""
    flat = [x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1) for x in arrays]
    batch, heads, rows, size = arrays[0].shape
    return expected(flat, heads, arrays[1].shape[1], bias).reshape(batch, rows, heads, size).transpose(0, 2, 1, 3)


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(4, 2, 24), (3, 1, 64), (2, 2, 7), (7, 1, 80), (12, 12, 16)])
@pytest.mark.parametrize("rows", [1, 3])
def test_heads(heads: int, key_heads: int, size: int, rows: int) -> None:
    arrays = inputs(2, rows, 333, heads, key_heads, size)
    check(model(heads, key_heads, size, sizes=(rows, 333)), arrays, expected(arrays, heads, key_heads))


ANY = {target: decoder(target=target) for target in TARGETS}
"""Compiled once: the sizes are symbolic."""


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 700), st.sampled_from(TARGETS))
def test_one_kernel_for_all_sizes(batch: int, rows: int, keys: int, target: str) -> None:
    """With the number of queries from which vectors are filled in between."""
    arrays = cache(batch, rows, keys)
    check(ANY[target], arrays, wanted(arrays))


@pytest.mark.parametrize("target", TARGETS)
def test_masks(target: str) -> None:
    arrays = cache(2, 2, 400)
    rng = np.random.default_rng(5)
    bias = rng.standard_normal((2, 4, 2, 400), dtype=np.float32)
    check(decoder(", float[b,4,s,t] m", ", m", target=target), arrays, wanted(arrays, bias), bias)
    attend = rng.random((2, 400)) < 0.3
    check(decoder(", bool[s,t] m", ", m", target=target), arrays, wanted(arrays, forbidden(attend)), attend)


def test_a_row_that_sees_nothing_is_zero() -> None:
    arrays = cache(1, 3, 200)
    attend = np.ones((3, 200), bool)
    attend[1] = False
    result = wanted(arrays, forbidden(attend))
    assert not result[:, :, 1].any()
    check(decoder(", bool[s,t] m", ", m"), arrays, result, attend)


def test_a_range_that_nothing_is_seen_of() -> None:
    """All keys of the first range are masked, and the last scores so low that no exponent may be taken from 0."""
    arrays = cache(1, 1, 400)
    bias = np.full((1, 400), -np.inf, np.float32)
    bias[:, 390:] = -100
    check(decoder(", float[s,t] m", ", m", rows="1"), arrays, wanted(arrays, bias), bias)


def test_a_mask_that_ends_before_the_keys() -> None:
    arrays = cache(1, 2, 90)
    mask = np.random.default_rng(2).standard_normal((2, 41), dtype=np.float32)
    bias = np.concatenate([mask, np.full((2, 49), -np.inf, np.float32)], axis=1)
    check(decoder(", float[s,m] m", ", m"), arrays, wanted(arrays, bias), mask)


@pytest.mark.parametrize("target", TARGETS)
def test_capped_scores(target: str) -> None:
    arrays = cache(1, 1, 150)
    q, k, _ = arrays
    scores = (q.astype(np.float64) @ np.repeat(k, 2, axis=1).transpose(0, 1, 3, 2)) / 4
    bias = 2.0 * np.tanh(scores / 2.0) - scores
    check(decoder(attributes="<softcap = 2.0>", target=target), arrays, wanted(arrays, bias))


@pytest.mark.parametrize("target", TARGETS)
def test_causal_behind_a_cache(target: str) -> None:
    """The last query sees all keys, the one before it all but one."""
    executable = compiled(
        parse(
            """g (float[b,4,s,16] q, float[b,2,s,16] k, float[b,2,s,16] v, float[b,2,p,16] pk, float[b,2,p,16] pv)
            => (float[b,4,s,16] y, float[b,2,t,16] nk, float[b,2,t,16] nv) {
            y, nk, nv = Attention<is_causal = 1>(q, k, v, , pk, pv) }"""
        ),
        target,
    )
    for rows, past in ((1, 300), (3, 77), (8, 0)):
        q, k, v = cache(1, rows, past + rows)
        new = [np.ascontiguousarray(x[:, :, past:]) for x in (k, v)]
        old = [np.ascontiguousarray(x[:, :, :past]) for x in (k, v)]
        seen = np.arange(past + rows) <= np.arange(rows)[:, None] + past
        y, *grown = executable.run([q, *new, *old], 2)
        assert distance(y, wanted([q, k, v], forbidden(seen)).astype(np.float32)) <= 1e-5
        for found, whole in zip(grown, (k, v), strict=True):
            np.testing.assert_array_equal(found, whole)


def test_what_lies_behind_the_valid_keys_is_not_read() -> None:
    """A cache of fixed size: NaN times a weight of zero would be NaN."""
    arrays = cache(2, 1, 500)
    valid = np.array([300, 20])
    seen = np.arange(500) < valid[:, None, None, None]
    result = wanted(arrays, forbidden(seen))
    for x in arrays[1:]:
        x[0, :, 300:] = np.nan
        x[1, :, 20:] = np.nan
    check(decoder(", int64[b] n", ", , , , n"), arrays, result, valid)


@pytest.mark.parametrize("rows", [1, 20])
def test_not_a_number_stays_where_it_belongs(rows: int) -> None:
    arrays = cache(1, rows, 300)
    arrays[0][0, 1, 0, 5] = np.nan
    (found,) = decoder().run(arrays, 2)
    assert np.isnan(found[0, 1, 0]).all()
    assert np.isfinite(np.delete(found[0].reshape(4 * rows, -1), rows, axis=0)).all()


def test_threads_give_the_same_bits() -> None:
    arrays = cache(1, 1, 3000)
    one, two = (ANY["cpu"].run(arrays, threads)[0] for threads in (1, 2))
    np.testing.assert_array_equal(one, two)
