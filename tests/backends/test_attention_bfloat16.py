"""Attention of bfloat16: softmax and sums in float32, weights and results rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from optimizer.executable import Executable
from optimizer.target import Target
from tests.backends.bfloat16 import BFLOAT16, TARGETS, native, random, usable
from tests.backends.running import compiled, parse
from tests.backends.test_attention_rule import forbidden

Array = npt.NDArray[Any]

_ROUNDED = 2.0**-8
"""Relative error of a rounded number."""
_SUMMED = 1e-5
"""Of scores up to 20 and their exponentials, and of the sums, in float32."""


def model(
    shapes: Sequence[str], mask: str = "", attributes: str = "", target: str = "cpu", given: str = ", m"
) -> Executable:
    """Attention of heads that lie first; `shapes` of query, key, value and result."""
    names = [f"bfloat16[{shape}] {name}" for shape, name in zip(shapes, "qkvy", strict=True)]
    declared = f", {mask} m" if mask else ""
    return compiled(
        parse(
            f"g ({', '.join(names[:3])}{declared}) => ({names[3]}) "
            f"{{ y = Attention{attributes}(q, k, v{given if mask else ''}) }}",
            opset=24,
        ),
        usable(target),
    )


def of_any_length(
    size: int, value_size: int, mask: str = "", attributes: str = "", target: str = "cpu", given: str = ", m"
) -> Executable:
    """Four heads over two."""
    shapes = (f"b,4,s,{size}", f"b,2,t,{size}", f"b,2,t,{value_size}", f"b,4,s,{value_size}")
    return model(shapes, mask, attributes, target, given)


def inputs(rows: int, keys: int, size: int, value_size: int, batch: int = 2) -> list[Array]:
    rng = np.random.default_rng(rows * 1000 + keys)
    return [random(rng, batch, *shape) for shape in ((4, rows, size), (2, keys, size), (2, keys, value_size))]


def check(executable: Executable, arrays: Sequence[Array], bias: Array | float = 0.0, *more: Array) -> Array:
    """Demand what follows from rounding the weights and the result."""
    (found,) = executable.run([*arrays, *more], 2)
    query, key, value = (x.astype(np.float64) for x in arrays)
    key, value = (np.repeat(x, 2, axis=1) for x in (key, value))
    scores = query @ key.transpose(0, 1, 3, 2) / np.sqrt(query.shape[-1]) + bias
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - np.maximum(scores.max(-1, keepdims=True), -1e300))
    total = powers.sum(-1, keepdims=True)
    shares = np.divide(powers, total, out=np.zeros_like(powers), where=total > 0)
    wanted, size = shares @ value, shares @ np.abs(value)
    assert (found.dtype, found.shape) == (BFLOAT16, wanted.shape)
    error = np.abs(found.astype(np.float64) - wanted)
    bound = _ROUNDED * (np.abs(wanted) + size) + _SUMMED * size
    assert (error <= bound).all(), f"{np.nanmax(error / np.maximum(bound, 1e-30))} times the bound"
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_any_length(target: str) -> None:
    """From one query (which few others join) over some that fill no vector to several blocks."""
    executable = of_any_length(16, 16, target=target)
    for rows, keys in ((1, 1), (1, 333), (3, 64), (17, 5), (70, 131), (150, 300)):
        check(executable, inputs(rows, keys, 16, 16))


@pytest.mark.parametrize(("rows", "keys"), [(128, 128), (100, 33), (65, 1), (2, 77)])
def test_known_lengths(rows: int, keys: int) -> None:
    shapes = (f"2,4,{rows},24", f"2,2,{keys},24", f"2,2,{keys},24", f"2,4,{rows},24")
    check(model(shapes), inputs(rows, keys, 24, 24))


@pytest.mark.parametrize(("size", "value_size"), [(64, 64), (2, 7), (7, 2), (20, 33), (80, 1)])
def test_heads_of_any_size(size: int, value_size: int) -> None:
    """Of an odd size, too, which makes no pairs."""
    executable = of_any_length(size, value_size)
    for rows in (1, 40):
        check(executable, inputs(rows, 77, size, value_size))


@pytest.mark.parametrize("target", TARGETS)
def test_boolean_mask_and_rows_that_see_nothing(target: str) -> None:
    executable = of_any_length(16, 16, "bool[s,t]", target=target)
    for rows in (2, 50):
        mask = np.random.default_rng(3).random((rows, 90)) < 0.5
        mask[1] = False
        found = check(executable, inputs(rows, 90, 16, 16), forbidden(mask), mask)
        assert not found[:, :, 1].any()


@pytest.mark.parametrize("rows", [2, 50])
def test_additive_mask(rows: int) -> None:
    mask = random(np.random.default_rng(4), 2, 1, rows, 90)
    executable = of_any_length(16, 16, "bfloat16[b,1,s,t]")
    check(executable, inputs(rows, 90, 16, 16), mask.astype(np.float64), mask)


@pytest.mark.parametrize("target", TARGETS)
def test_causal(target: str) -> None:
    executable = of_any_length(16, 16, attributes="<is_causal = 1>", target=target)
    for rows, keys in ((5, 40), (140, 140), (60, 200)):
        seen = np.arange(keys) <= np.arange(rows)[:, None]
        check(executable, inputs(rows, keys, 16, 16), forbidden(seen))


def test_valid_keys() -> None:
    executable = of_any_length(16, 16, "int64[b]", given=", , , , m")
    for rows in (1, 40):
        valid = np.array([70, 11])
        seen = np.arange(100) < valid[:, None, None, None]
        check(executable, inputs(rows, 100, 16, 16), forbidden(seen), valid)


def test_not_a_number_stays_where_it_belongs() -> None:
    arrays = inputs(40, 50, 16, 16)
    arrays[0][0, 1, 3, 5] = np.nan
    (found,) = of_any_length(16, 16).run(arrays, 2)
    assert np.isnan(found[0, 1, 3].astype(np.float32)).all()
    assert np.isfinite(np.delete(found.reshape(-1, 16), 43, axis=0).astype(np.float32)).all()


def test_pairs_are_multiplied_by_the_processor(tmp_path: Path) -> None:
    """Where it can, and nowhere else."""
    cpu = Target.parse("cpu").cpu
    assert cpu is not None
    shapes = ("1,2,64,32", "1,2,64,32", "1,2,64,32", "1,2,64,32")
    assert native(model(shapes), tmp_path) == cpu.bfloat16
    assert not native(model(shapes, target="cpu:x86-64-v3"), tmp_path)
