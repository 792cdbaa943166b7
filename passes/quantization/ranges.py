"""What the activations of a model are on calibration data: one run over it, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.calibration import Samples, observe
from optimizer.errors import InputError
from passes.quantization.histogram import Histogram

__all__ = ["Means", "observe_ranges"]


class Means:
    """The mean of each channel.

    Args:
        axis: Of the channels.
    """

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sum: npt.NDArray[np.float64] | None = None
        self._count = 0

    def add(self, numbers: npt.NDArray[Any]) -> None:
        """Take numbers in."""
        channels = np.moveaxis(numbers, self._axis, -1)
        rows = channels.reshape(-1, channels.shape[-1])
        total = rows.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(rows)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """`[channels]`."""
        assert self._sum is not None, "numbers were taken in"
        return self._sum / max(1, self._count)


def observe_ranges(
    model: ir.Model, names: Sequence[str], samples: Samples, means: Mapping[str, Means] | None = None
) -> dict[str, Histogram]:
    """Count the numbers that values of a model take.

    Args:
        model: Not changed.
        names: Of the values.
        samples: Sets of inputs.
        means: Of some of the values; filled in.

    Raises:
        InputError: A value is NaN or infinite on some set.
        UnsupportedError, ExecutionError: The model does not run.
    """
    seen = {name: Histogram() for name in names}
    for position, arrays in enumerate(observe(model, list(seen), samples)):
        for (name, histogram), numbers in zip(seen.items(), arrays, strict=True):
            try:
                histogram.add(numbers)
            except ValueError as error:
                raise InputError(f"calibration set {position}: the model's {name!r} holds {error}") from error
            if means is not None and name in means:
                means[name].add(numbers)
    return seen
