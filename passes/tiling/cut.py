"""A piece of an operator's result, and what it takes to compute it alone.

A `Cut` says: to get the elements `[start, stop)` of an output along one axis, run the operator once more with these
windows of its inputs, these attributes and these constants. `passes.tiling.rules` has one function for each kind of
operator that gives its cuts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["WHOLE", "Array", "Cut", "Request", "Window", "piece_windows"]

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Window:
    """The elements `[start, stop)` along one axis.

    Attributes:
        axis: Counted from the front; -1 for all elements, whatever the axis.
        start: The first element.
        stop: The one behind the last.
    """

    axis: int
    start: int = 0
    stop: int = 0

    @property
    def size(self) -> int:
        """The number of elements along the axis."""
        return self.stop - self.start

    def covers(self, other: Window) -> bool:
        """Whether all of another window lies in this one."""
        return self.axis == other.axis and self.start <= other.start and other.stop <= self.stop

    def overlaps(self, other: Window) -> bool:
        """Whether the two have elements in common, or touch."""
        return self.axis == other.axis and self.start <= other.stop and other.start <= self.stop

    def hull(self, other: Window) -> Window:
        """The smallest window with both in it."""
        return Window(self.axis, min(self.start, other.start), max(self.stop, other.stop))

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shape of this window of a tensor."""
        return tuple(self.size if axis == self.axis else size for axis, size in enumerate(whole))


WHOLE = Window(-1)


@dataclass(frozen=True)
class Request:
    """What a rule is asked: a window of one output of a node.

    Attributes:
        node: The node.
        output: Which of its outputs.
        window: Along which axis, from where to where.
        shape: Gives the sizes of a value; `None` where they are not plain numbers.
        opset: The version of the standard operators.
    """

    node: ir.Node
    output: int
    window: Window
    shape: Callable[[ir.Value | None], tuple[int, ...] | None]
    opset: int

    def input_shape(self, index: int) -> tuple[int, ...] | None:
        """The sizes of an input; `None` when it is left out or they are not known."""
        return self.shape(self.node.inputs[index]) if index < len(self.node.inputs) else None

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The sizes of the output; whoever asks has made sure that they are known."""
        found = self.shape(self.node.outputs[self.output])
        assert found is not None, "only outputs of known sizes are cut"
        return found


@dataclass(frozen=True)
class Cut:
    """How to compute a window of an output.

    Attributes:
        windows: The window of each input; `WHOLE` for those that stay as they are or are left out.
        gives: What is computed: the window that was asked for, or more around it.
        attributes: Those that differ from the node's; `None` for one that is not given any more.
        constants: Inputs that become other constants, such as a shape.
        op_type: The operator that computes it, if it is another one; `""` when the window of the first input is the
            result itself. There are as many inputs as there are windows.
    """

    windows: tuple[Window, ...]
    gives: Window
    attributes: Mapping[str, ir.Attr | None] = field(default_factory=dict)
    constants: Mapping[int, Array] = field(default_factory=dict)
    op_type: str | None = None


def piece_windows(axis: int, size: int, count: int, grain: int = 1) -> list[Window]:
    """Windows of the same size, the last one perhaps smaller, that cover an axis; at most `count` of them.

    Args:
        axis: The axis.
        size: Its elements.
        count: How many pieces are wanted.
        grain: The elements of what must not be cut.
    """
    step = -(-size // (grain * count)) * grain
    return [Window(axis, start, min(start + step, size)) for start in range(0, size, step)]
