"""Einsum in all its forms, and determinants with pivots."""

import numpy as np
import pytest

from tests.backends.emitted import agrees, normal
from tests.backends.running import parse


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(3, 4), (4, 5)]),
        ("bqhd,bkhd->bhqk", [(2, 3, 4, 5), (2, 6, 4, 5)]),
        ("ij->ji", [(3, 4)]),
        ("ii->i", [(4, 4)]),
        ("ii", [(4, 4)]),
        ("ij->", [(3, 4)]),
        ("i,j->ij", [(3,), (4,)]),
        ("...ij,...jk->...ik", [(2, 1, 3, 4), (5, 4, 6)]),
        ("...ii->...i", [(2, 3, 3)]),
        ("bi,i,ij->bj", [(2, 3), (3,), (3, 4)]),
        ("b i j , b j", [(2, 3, 4), (2, 4)]),
        ("ij,kl->il", [(2, 3), (4, 5)]),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    arrays = [normal(*s) for s in shapes]
    names = "abc"[: len(arrays)]
    inputs = ", ".join(f"float[{','.join(map(str, s))}] {n}" for n, s in zip(names, shapes, strict=True))
    wanted = np.einsum(equation, *arrays)
    sizes = f"[{','.join(map(str, wanted.shape))}]" if wanted.ndim else ""
    body = f'y = Einsum<equation="{equation}">({", ".join(names)})'
    agrees(parse(f"g ({inputs}) => (float{sizes} y) {{ {body} }}"), arrays, [np.asarray(wanted)], rtol=1e-4, atol=1e-5)


def test_determinants_with_zero_pivots() -> None:
    x = normal(4, 3, 3)
    x[0, 0, 0] = 0.0
    x[1, 1] = x[1, 0]
    x[2] = 0.0
    model = parse("g (float[4,3,3] x) => (float[4] y) { y = Det(x) }")
    agrees(model, [x], [np.linalg.det(x.astype(np.float64)).astype(np.float32)], rtol=1e-4)
