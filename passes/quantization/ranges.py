"""What the activations of a model are on calibration data: one run over it, in memory that does not grow with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from optimizer.calibration import Samples, observe
from optimizer.errors import InputError
from passes.quantization.histogram import Histogram

__all__ = ["Largest", "Means", "Powers", "observe_channels", "observe_ranges"]


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
        total = self._total(rows)
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(rows)

    @staticmethod
    def _total(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(rows.sum(axis=0, dtype=np.float64))

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """`[channels]`."""
        assert self._sum is not None, "numbers were taken in"
        return self._sum / max(1, self._count)


class Powers(Means):
    """The mean square of each channel."""

    @staticmethod
    def _total(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return np.asarray(np.einsum("nc,nc->c", rows, rows, dtype=np.float64))


class Largest:
    """The largest absolute number of each channel.

    Args:
        axis: Of the channels.

    Attributes:
        rows: How many numbers of each channel were seen.
    """

    def __init__(self, axis: int) -> None:
        self.rows = 0
        self._axis = axis
        self._largest: npt.NDArray[np.float64] | None = None

    def add(self, numbers: npt.NDArray[Any]) -> None:
        """Take finite numbers in.

        Raises:
            ValueError: One of them is NaN or infinite.
        """
        rows = np.abs(np.moveaxis(numbers, self._axis, -1).reshape(-1, numbers.shape[self._axis]))
        found = rows.max(axis=0, initial=0.0).astype(np.float64)
        if not np.isfinite(found).all():
            raise ValueError("NaN or infinity")
        self.rows += len(rows)
        self._largest = found if self._largest is None else np.maximum(self._largest, found)

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """`[channels]`."""
        assert self._largest is not None, "numbers were taken in"
        return self._largest


class _Counter(Protocol):
    def add(self, numbers: npt.NDArray[Any]) -> None: ...


def observe_ranges(
    model: ir.Model, names: Sequence[str], samples: Samples, *means: Mapping[str, Means]
) -> dict[str, Histogram]:
    """Count the numbers that values of a model take.

    Args:
        model: Not changed.
        names: Of the values.
        samples: Sets of inputs.
        means: Of values, by name; filled in.

    Raises:
        InputError: A value is NaN or infinite on some set.
        UnsupportedError, ExecutionError: The model does not run.
    """
    seen = {name: Histogram() for name in names}
    _observe(model, [*seen.items(), *(pair for table in means for pair in table.items())], samples)
    return seen


def observe_channels(model: ir.Model, largest: Mapping[str, Largest], samples: Samples) -> None:
    """Find the largest number of each channel of values of a model; raises what `observe_ranges` does.

    Args:
        model: Not changed.
        largest: By the values' names; filled in.
        samples: Sets of inputs.
    """
    _observe(model, list(largest.items()), samples)


def _observe(model: ir.Model, counters: Sequence[tuple[str, _Counter]], samples: Samples) -> None:
    names = list(dict.fromkeys(name for name, _ in counters))
    for position, arrays in enumerate(observe(model, names, samples)):
        numbers = dict(zip(names, arrays, strict=True))
        for name, counter in counters:
            try:
                counter.add(numbers[name])
            except ValueError as error:
                raise InputError(f"calibration set {position}: the model's {name!r} holds {error}") from error
