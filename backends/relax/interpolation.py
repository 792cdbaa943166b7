"""Weights of the neighbours between which a sample is interpolated.

A sample at coordinate x has the base b = floor(x); its neighbour k stands at b + first + k.
"""

from __future__ import annotations

from tvm import tirx

NEIGHBOURS = {"linear": (0, 2), "cubic": (-1, 4)}
"""Mode -> where the first neighbour stands from the base, and how many there are."""


def weight(mode: str, distance: tirx.Expr, a: float = -0.75) -> tirx.Expr:
    """The weight of a neighbour at a distance from the sample.

    Args:
        mode: "linear" or "cubic" (Keys, "Cubic convolution interpolation for digital image processing", 1981).
        distance: a float expression of either sign.
        a: the cubic's free coefficient.
    """
    dtype = str(distance.expr_ty())

    def number(value: float) -> tirx.Expr:
        return tirx.const(value, dtype)

    d = tirx.abs(distance)
    if mode == "linear":
        return tirx.max(number(1) - d, number(0))
    near = (number(a + 2) * d - number(a + 3)) * d * d + number(1)
    far = ((number(a) * d - number(5 * a)) * d + number(8 * a)) * d - number(4 * a)
    return tirx.Select(d <= number(1), near, tirx.Select(d < number(2), far, number(0)))
