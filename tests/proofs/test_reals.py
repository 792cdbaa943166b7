"""The formulas behind the fusions and folds, over the real numbers: they may differ by rounding and by nothing else.

Each is followed by what goes wrong without its precondition.
"""

from __future__ import annotations

from typing import Any

import z3

from tests.proofs.solver import counterexample, prove

x, y, b, c, t, g, e, m, v, r = z3.Reals("x y b c t g e m v r")


def layer(weights: list[Any], bias: Any) -> Any:
    """One output of a layer: a sum of products and a bias."""
    return sum((w * z3.Real(f"x{i}") for i, w in enumerate(weights)), bias)


WEIGHTS = [z3.Real(f"w{i}") for i in range(3)]


def test_fold_affine() -> None:
    prove(layer(WEIGHTS, b) * c == layer([w * c for w in WEIGHTS], b * c))
    prove(layer(WEIGHTS, b) / c == layer([w * (1 / c) for w in WEIGHTS], b * (1 / c)), c != 0)
    prove(layer(WEIGHTS, b) + c == layer(WEIGHTS, b + c))
    prove(layer(WEIGHTS, b) - c == layer(WEIGHTS, b + -c))
    prove(c - layer(WEIGHTS, b) == layer([w * -1 for w in WEIGHTS], b * -1 + c))
    assert counterexample(layer(WEIGHTS, b) / c == layer([w * (1 / c) for w in WEIGHTS], b * (1 / c))) is not None
    assert counterexample(c / layer([x], 0) == layer([c / x], 0), x != 0, z3.Real("x0") != 0) is not None


def test_fold_affine_of_two_layers_that_share_a_weight() -> None:
    """Which is why nothing else may use the weight: changing it for one layer changes the other."""
    other = layer([x], b)
    assert counterexample(z3.substitute(other, (x, x * c)) == other) is not None


def test_hoist_bias() -> None:
    """`b` is added to what the layers read, `h`, and beside the connection that skips them no longer."""
    h = [z3.Real(f"h{i}") for i in range(3)]
    shift = [z3.Real(f"b{i}") for i in range(3)]

    def product(row: list[Any]) -> Any:
        return sum(item * w for item, w in zip(row, WEIGHTS, strict=True))

    raised = [item + by for item, by in zip(h, shift, strict=True)]
    prove(product(h) + c == product(raised) + (c - product(shift)))
    prove((h[0] + t) + shift[0] == raised[0] + t)
    assert counterexample(product(h) == product(raised)) is not None  # so every reader needs a bias of its own


def test_hoist_pooling() -> None:
    """Two channels at two places: the mean over the places of a layer is the layer of the means."""
    left, right = ([z3.Real(f"{name}{i}") for i in range(2)] for name in ("left", "right"))

    def one(place: list[Any]) -> Any:
        return place[0] * WEIGHTS[0] + place[1] * WEIGHTS[1] + b

    means = [(p + q) / 2 for p, q in zip(left, right, strict=True)]
    prove((one(left) + one(right)) / 2 == one(means))
    padded = [p / 2 for p in left]  # the other place is padding: zero, and without a bias
    assert counterexample((one(left) + 0) / 2 == one(padded)) is not None


def test_fold_batch_norm() -> None:
    """`r` is the root of variance and epsilon, and `s = scale / r`."""
    scale = z3.Real("scale")
    plain = (layer(WEIGHTS, b) - m) / r * scale + c
    folded = layer([w * (scale / r) for w in WEIGHTS], b * (scale / r) + (c - m * (scale / r)))
    prove(plain == folded, r > 0, r * r == v + e)
    assert counterexample(plain == folded, r == 0) is not None


def test_fold_affine_into_a_normalization() -> None:
    plain = ((x - m) / r * g + b) * c + t
    prove(plain == (x - m) / r * (g * c) + (b * c + t), r > 0)


def test_gelu_in_every_way_to_write_it() -> None:
    half = z3.Q(1, 2)
    standard = half * x * (1 + t)
    for other in (
        x * (half * (1 + t)),
        x * (half + half * t),
        x * half + x * half * t,
        (x + x * t) / 2,
        x / 2 * (1 + t),
    ):
        prove(other == standard)
    assert counterexample(x * (1 + t) == standard) is not None


def test_the_sigmoid_form_of_gelu() -> None:
    """Tanh(u) is 2 * Sigmoid(2 * u) - 1. With e = exp(2 * u): Tanh = (e - 1) / (e + 1), Sigmoid = e / (1 + e)."""
    tanh, sigmoid = (e - 1) / (e + 1), e / (1 + e)
    prove(z3.Q(1, 2) * x * (1 + tanh) == x * sigmoid, e > 0)
    assert counterexample(z3.Q(1, 2) * x * (1 + tanh) == x * (1 / (1 + e * e)), e > 0) is not None


def test_gelu_of_the_negated_argument() -> None:
    """Erf and Tanh are odd: what is taken off with `-t` is added with `t`."""
    prove(x * (1 - -t) == x * (1 + t))


def smaller(left: Any, right: Any) -> Any:
    return z3.If(left < right, left, right)


def larger(left: Any, right: Any) -> Any:
    return z3.If(left > right, left, right)


def test_hard_sigmoid_and_hard_swish() -> None:
    clipped = larger(0, smaller(c, t * x + b))
    hard_sigmoid = larger(0, smaller(1, t / c * x + b / c))
    prove(clipped * (1 / c) == hard_sigmoid, c > 0)
    prove(x * larger(0, smaller(6, x + 3)) / 6 == x * larger(0, smaller(1, x / 6 + z3.Q(1, 2))))
    assert counterexample(clipped * (1 / c) == hard_sigmoid, c < 0) is not None
    assert (
        counterexample(x * larger(0, smaller(6, x + 3)) / 6 == x * larger(0, smaller(1, x / 5 + z3.Q(1, 2))))
        is not None
    )


def test_the_ways_to_divide_by_a_root() -> None:
    """`r` is the root of `v + e`."""
    given = (r > 0, r * r == v + e)
    prove(x * (1 / r) == x / r, *given)
    prove(x * (g * (1 / r)) == x / r * g, *given)
    prove(x * g / r == x / r * g, *given)
    inverse = z3.Real("inverse")
    # Sqrt(Reciprocal(v + e)) and Pow(v + e, -0.5) are the positive number whose square is 1 / (v + e).
    prove(inverse == 1 / r, *given, inverse > 0, inverse * inverse == 1 / (v + e))


def test_epsilon_beside_the_root_is_another_function() -> None:
    root = z3.Real("root")
    given = (root > 0, root * root == v, r > 0, r * r == v + e, e > 0)
    assert counterexample(x / (root + e) == x / r, *given) is not None


def test_layer_normalization_as_tensorflow_writes_it() -> None:
    factor = g / r
    prove(x * factor + (b - m * factor) == (x - m) / r * g + b, r > 0)
    assert counterexample(x * factor + (b - c * factor) == (x - m) / r * g + b, r > 0) is not None


def test_the_mean_over_other_axes_is_another_function() -> None:
    """Of a 2 by 2 matrix: standardizing rows needs the mean of the row, not of the column."""
    a, other_row, other_column = z3.Reals("a other_row other_column")
    assert counterexample((a + other_row) / 2 == (a + other_column) / 2) is not None


def test_scale_and_bias_of_a_group_go_with_each_channel_only_if_they_are_one_and_zero() -> None:
    """InstanceNormalization of groups scales them before the channels are scaled."""
    scale, bias = z3.Reals("scale bias")
    plain = (((x - m) / r) * scale + bias) * g + b
    prove(plain == (x - m) / r * g + b, r > 0, scale == 1, bias == 0)
    assert counterexample(plain == (x - m) / r * g + b, r > 0, bias == 0) is not None
    assert counterexample(plain == (x - m) / r * g + b, r > 0, scale == 1) is not None


def test_gemm_of_a_product_and_a_summand() -> None:
    prove(layer(WEIGHTS, 0) + b == 1 * layer(WEIGHTS, 0) + 1 * b)
    assert counterexample(layer(WEIGHTS, 0) + b == layer(WEIGHTS, 0) + 2 * b) is not None


def test_reciprocals() -> None:
    prove(x * (1 / y) == x / y, y != 0)
    prove(x / (1 / y) == x * y, y != 0)
    assert counterexample(x / (1 / y) == x / y, y != 0) is not None
