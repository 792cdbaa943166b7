"""Say a shape as the constant second input of `Reshape`: 0 copies a size, -1 is inferred."""

from __future__ import annotations

from optimizer.ir.shape_info import Dims

__all__ = ["added_axes", "reshape_target"]


def reshape_target(wanted: Dims | None, given: Dims | None, *, may_mix: bool = False) -> tuple[int, ...] | None:
    """The constant that reshapes a tensor of shape `given` to shape `wanted`, or `None` when there is none.

    A 0 and a -1 together are refused unless `may_mix`: they fail at run time on a tensor without elements, where the
    sizes written out work.

    Args:
        wanted: The shape to reach.
        given: The shape to start from.
        may_mix: Whether the graph fails on such a tensor anyway.
    """
    if wanted is None:
        return None
    target: list[int] = []
    for axis, dim in enumerate(wanted):
        copied = given is not None and axis < len(given) and given[axis] == dim
        if isinstance(dim, int) and dim != 0:
            target.append(dim)
        elif copied:
            target.append(0)
        elif dim == 0:
            return None
        else:
            target.append(-1)
    if target.count(-1) > 1 or (-1 in target and 0 in target and not may_mix):
        return None
    return tuple(target)


def added_axes(wanted: Dims | None, given: Dims | None) -> tuple[int, ...] | None:
    """The axes of size 1 in `wanted` that are all it has more than `given`; `None` when that is not so."""
    if wanted is None or given is None:
        return None
    axes = []
    matched = 0
    for axis, dim in enumerate(wanted):
        if matched < len(given) and given[matched] == dim:
            matched += 1
        elif dim == 1:
            axes.append(axis)
        else:
            return None
    return tuple(axes) if matched == len(given) else None
