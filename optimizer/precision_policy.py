"""What a user can ask of the precision of a model's layers: a budget, and the forms that they may take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from optimizer.cache.limit import parse_limit
from optimizer.errors import InputError

__all__ = ["BLOCK_SIZES", "FORMS", "Metric", "PrecisionPolicy", "block_size"]

BLOCK_SIZES = (16, 32, 64, 128, 256)
FORMS = ("float32", "int8", "int8-dynamic", *(f"int4-{size}" for size in BLOCK_SIZES), "int4")
"""The forms of a layer: as it is; weights and activations in 8 bits, with ranges from the calibration data or found
while the model runs; weights in 4 bits with a scale for so many of them, or for each output."""

Metric = Callable[[Callable[..., Any]], float]
"""Judges a model. It is given a function that runs the model, and gives a number: the higher, the better."""

_BUDGETS = ("max_size", "max_bits", "max_error", "metric")


@dataclass(frozen=True)
class PrecisionPolicy:
    """Lets measurements choose how many bits each layer gets: `optimize(..., precision=PrecisionPolicy(...))`.

    Exactly one budget is given. With a size, the mix that loses least is taken; with an error or a metric, the smallest
    one. Calibration data is needed, and what a layer costs is measured on it: on sets of it that nothing is learned
    from, if there are at least eight.

    Attributes:
        max_size: The most bytes that all constants of the model may have, scales counted: a number, or `"60MB"`.
        max_bits: The most bits that a weight may have in the mean, scales counted, over all layers that the policy
            chooses for.
        max_error: The largest relative error of the model's worst output: the norm of the difference over the norm.
        metric: A function that judges the model. It is called with a function that takes inputs as a compiled
            model does, by position or by name, and gives arrays. Its result is a number: the higher, the better.
        max_loss: With `metric`: how much lower it may be than that of the float32 model.
        keep: Layers whose form is fixed: by name, in which `*` stands for anything, the form. A layer can be called by
            its own name, by those of the original nodes, by what it computes, or by its weight. The first pattern wins.
        forms: The forms to choose from.
        symmetric: Whether 4-bit weights have no zero points.
        scale_type: What their scales are stored as: `"float16"`, `"bfloat16"` or `"float32"`.
        method: How their codes are found: see `quantize-int4`.

    Raises:
        InputError: There is no budget or more than one, or a value is none that is possible.
    """

    max_size: int | str | None = None
    max_bits: float | None = None
    max_error: float | None = None
    metric: Metric | None = None
    max_loss: float | None = None
    keep: Mapping[str, str] = field(default_factory=dict)
    forms: tuple[str, ...] = ("float32", "int8", "int8-dynamic", "int4-32", "int4-64", "int4-128")
    symmetric: bool = False
    scale_type: str = "float16"
    method: str = "auto"

    def __post_init__(self) -> None:
        given = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise InputError(f"PrecisionPolicy needs one budget of {', '.join(_BUDGETS)}, and {found} is given")
        _bytes(self.max_size)
        _positive("max_bits", self.max_bits)
        _positive("max_error", self.max_error)
        if (self.metric is None) != (self.max_loss is None):
            raise InputError("PrecisionPolicy: metric and max_loss go together: by how much may the metric be lower?")
        if self.max_loss is not None and not (_is_number(self.max_loss) and 0 <= self.max_loss < math.inf):
            raise InputError(f"max_loss must be a number of at least 0, not {self.max_loss!r}")
        if self.metric is not None and not callable(self.metric):
            raise InputError(f"metric must be a function, not {self.metric!r}")
        object.__setattr__(self, "forms", tuple(self.forms))
        object.__setattr__(self, "keep", dict(self.keep))
        if not self.forms:
            raise InputError("PrecisionPolicy: forms is empty")
        for name in (*self.forms, *self.keep.values()):
            if name not in FORMS:
                raise InputError(f"PrecisionPolicy: unknown form {name!r}; known: {', '.join(FORMS)}")

    @property
    def max_bytes(self) -> int | None:
        """`max_size` in bytes."""
        return _bytes(self.max_size)

    @property
    def bounds_bytes(self) -> bool:
        """Whether the budget is one of bytes, and not of a loss."""
        return self.max_size is not None or self.max_bits is not None

    @property
    def budget(self) -> str:
        """The budget, to be read."""
        if self.metric is not None:
            return f"max_loss={self.max_loss:g} of {getattr(self.metric, '__name__', 'metric')}"
        name = next(name for name in _BUDGETS if getattr(self, name) is not None)
        return f"{name}={getattr(self, name)}"

    def __str__(self) -> str:
        return f"mixed, {self.budget}"

    def options(self) -> dict[str, Any]:
        """All attributes by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def block_size(form: str) -> int | None:
    """How many weights share a scale in a form of 4 bits, 0 for all of an output; `None` for other forms."""
    if not form.startswith("int4"):
        return None
    return int(form.partition("-")[2] or 0)


def _bytes(value: object) -> int | None:
    found = parse_limit(value, "max_size") if isinstance(value, str) else value
    if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found <= 0):
        raise InputError(f'max_size must be a positive number of bytes, or one such as "60MB", not {value!r}')
    return found


def _positive(name: str, value: object) -> None:
    if value is not None and not (_is_number(value) and 0 < float(str(value)) < math.inf):
        raise InputError(f"{name} must be a positive number, not {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
