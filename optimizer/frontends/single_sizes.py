"""Examples without sizes of one where the user wants any size: PyTorch's exporter takes a one for a broadcast.

An axis that is 1 in the example and dynamic all the same is exported without a guard, and the graph that comes out may
hold for that one size only: the sum of [batch, tokens, D] and [1, tokens, D] is declared [1, tokens, D], and every view
behind it has the 1 in its shape. So such an axis is given to the exporter twice as long.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optimizer.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["examples"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def examples(
    model: object, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: object
) -> Iterator[Arguments]:
    """What to export a module with, best first; the last is the example as it was given.

    A model may take two of an axis only together with another size of another argument (a mask as long as the cache and
    the new tokens), which nothing here can know; so the batch alone is tried next.

    Args:
        model: A module; an exported program has no dynamic shapes left to say.
        args: The positional arguments of the example.
        kwargs: The others.
        dynamic_shapes: As in `torch.export.export`.

    Raises:
        InputError: They name an axis that the example does not have.
    """
    import torch

    tried: list[list[tuple[int, ...]]] = [_sizes((args, kwargs))]
    if dynamic_shapes is not None and isinstance(model, torch.nn.Module):
        for axis in (None, 0):
            grown = _grown(model, args, kwargs, dynamic_shapes, axis)
            if grown is not None and _sizes(grown) not in tried:
                tried.append(_sizes(grown))
                yield grown
    yield args, kwargs


def _grown(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: object, axis: int | None
) -> Arguments | None:
    """The example with two where a dynamic axis (the given one, or any) has one; `None` if its form is not known."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return None  # the exporter says what is wrong with the arguments
    given = bound.arguments
    named: Mapping[str, object]
    if isinstance(dynamic_shapes, Mapping):
        named = dynamic_shapes
    elif isinstance(dynamic_shapes, Sequence):
        named = dict(zip(given, dynamic_shapes, strict=False))
    else:
        return None
    for name in list(given):
        given[name] = _twice(given[name], named.get(name), axis)
    return bound.args, bound.kwargs


def _twice(value: Any, spec: Any, only: int | None) -> Any:
    """A value of the example, whose dynamic axes of size 1 have two of what was there."""
    import torch

    if spec is None:
        return value
    if isinstance(value, torch.Tensor):
        sizes = spec.items() if isinstance(spec, Mapping) else enumerate(spec) if isinstance(spec, Sequence) else ()
        times = [1] * value.dim()
        for axis, size in sizes:
            if axis not in range(-value.dim(), value.dim()):  # the exporter's own error is an IndexError without a word
                raise InputError(f"dynamic_shapes names axis {axis} of an argument of shape {tuple(value.shape)}")
            if only in (None, axis) and value.shape[axis] == 1 and _takes_two(size):
                times[axis] = 2
        return value.repeat(times) if any(n > 1 for n in times) else value
    if isinstance(value, Mapping) and isinstance(spec, Mapping):
        return {key: _twice(each, spec.get(key), only) for key, each in value.items()}
    if type(value) in (list, tuple) and isinstance(spec, Sequence):
        return type(value)(_twice(each, spec[i] if i < len(spec) else None, only) for i, each in enumerate(value))
    return value


def _takes_two(size: object) -> bool:
    """Whether a size is dynamic, and may be 2 as well as 1; one that follows another by a formula is left alone."""
    from torch.export import Dim

    if isinstance(size, type(Dim.DYNAMIC)):
        return size != Dim.STATIC and (size.max is None or size.max >= 2)
    if isinstance(size, str):
        return True
    return isinstance(size, Dim) and not hasattr(size, "root") and size.min <= 2 <= size.max


def _sizes(value: Any) -> list[tuple[int, ...]]:
    """The shapes of all tensors in an example."""
    if hasattr(value, "shape"):
        return [tuple(value.shape)]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [shape for part in parts for shape in _sizes(part)]
