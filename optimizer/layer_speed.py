"""How long a layer takes in float32 and in int8: what a pass asks a target's tile model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["AttentionWork", "LayerWork", "Speed"]


@dataclass(frozen=True)
class LayerWork:
    """A product or convolution. Sizes that are symbolic are `None`.

    Attributes:
        rows: Rows of a product's input, or pixels of a convolution's result, of all images together.
        depth: Multiplications for an element of the result.
        columns: Output channels of a group.
        groups: Of a convolution.
        read: Elements of the input for each row, all groups together.
        images, height, width: Of a convolution's result.
        three: Whether it is a convolution of 3 x 3 without strides, which has a faster method in float32.
        dynamic: Whether the range of each row is found while the model runs.
        stored_rounded: Whether what is read comes from a kernel that stores it rounded instead of as float32, so that
            rounding costs no pass over it.
    """

    rows: int | None
    depth: int
    columns: int
    groups: int = 1
    read: float = 0.0
    images: int | None = None
    height: int | None = None
    width: int | None = None
    three: bool = False
    dynamic: bool = False
    stored_rounded: bool = False


@dataclass(frozen=True)
class AttentionWork:
    """An attention. Sizes that are symbolic are `None`.

    Attributes:
        batch: How many sequences.
        heads: Of queries.
        rows: Queries of a head.
        keys: Of a head.
        size: Elements of a query and of a key.
        value_size: Elements of a value.
    """

    batch: int | None
    heads: int
    rows: int | None
    keys: int | None
    size: int
    value_size: int


Speed = Callable[[LayerWork | AttentionWork], tuple[float, float]]
"""Predicted seconds in float32, and in int8 with the rounding of what is read."""
