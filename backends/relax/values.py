"""What the emitter knows of an ONNX value while it walks the graph.

A value can be known in several forms at once: as a Relax expression in ONNX's own axis order, as one with the
channels last, as a
list of symbolic integers (shape arithmetic), or as a constant. Emitters ask for the form they work in; conversions
are emitted once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx
from tvm.ir import Call


class Refused(Exception):
    """An emitter cannot express this node. The reason ends up in the report, and the node in the fallback partition."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ChannelsLast:
    """The result of an emitter that works on [N, spatial..., C] where ONNX says [N, C, spatial...]."""

    expr: relax.Expr


@dataclass(frozen=True)
class SymbolicInts:
    """A small integer tensor whose elements are known as expressions over the symbolic sizes.

    Attributes:
        elements: the elements in row-major order, as `tirx` integer expressions (int64).
        shape: the tensor's own (static) shape; `()` for a scalar.
        dtype: "int64" or "int32".
    """

    elements: tuple[tirx.Expr, ...]
    shape: tuple[int, ...]
    dtype: str = "int64"


Emitted: TypeAlias = relax.Expr | ChannelsLast | SymbolicInts | np.ndarray


@dataclass(frozen=True)
class Deferred:
    """A result that is emitted when a reader asks for it; one that works on what it is made of never does.

    Attributes:
        source: what it is made of, element by element: it has the result's shape, and lies as the result will.
        dtype: the result's.
        emit: emits it.
    """

    source: ir.Value
    dtype: str
    emit: Callable[[], Emitted]


Result: TypeAlias = Emitted | Deferred
"""What an emitter returns; an array is a constant."""


@dataclass(frozen=True)
class Packed:
    """A weight argument of the compiled function: an initializer of the model and how it is laid out for the kernel.

    Attributes:
        source: the name of the initializer.
        transform: a function of `backends.relax.packing`, by name.
        options: its keyword arguments, as a sorted tuple of pairs.
        shape: the packed shape.
        dtype: the packed dtype.
    """

    source: str
    transform: str
    options: tuple[tuple[str, object], ...]
    shape: tuple[int, ...]
    dtype: str


@dataclass
class Slot:
    """Every form in which one ONNX value is known."""

    value: ir.Value
    plain: relax.Expr | None = None
    channels_last: relax.Expr | None = None
    ints: SymbolicInts | None = None
    constant: np.ndarray | None = None
    deferred: Deferred | None = None
    weight: bool = False
    params: dict[Packed, relax.Expr] = field(default_factory=dict)


def prim(x: int | tirx.Expr) -> tirx.Expr:
    """An int64 expression from a Python integer or an expression of any integer dtype."""
    if isinstance(x, (int, np.integer)):
        return tirx.const(int(x), "int64")
    return x if str(x.expr_ty()) == "int64" else tirx.Cast("int64", x)


def static_int(x: int | tirx.Expr) -> int | None:
    """The value of an expression that is a constant, else None."""
    if isinstance(x, (int, np.integer)):
        return int(x)
    return int(x.value) if isinstance(x, tirx.IntImm) else None


@dataclass(frozen=True)
class ConvShape:
    """The sizes of a convolution of one group; a symbolic one is `None`.

    Attributes:
        images: in the batch.
        height, width: of the result.
        depth: input channels.
        columns: output channels.
        dtype: of the elements.
    """

    images: int | None
    height: int | None
    width: int | None
    depth: int
    columns: int
    dtype: str = "float32"


class PanelChoice(Protocol):
    """What an emitter must know of the target's schedules."""

    def four_bit_width(self, columns: int) -> int:
        """Columns in a panel of a packed matrix of 4-bit codes."""
        ...

    def asked_by(self, node: Callable[[], str]) -> None:
        """Told by each emitter how to learn the name of the node that asks."""
        ...

    def panel_width(self, rows: int | None, columns: int, depth: int, dtype: str = "float32", taps: int = 1) -> int:
        """Columns in a panel of a packed matrix [depth, columns] that `rows` rows are multiplied with."""
        ...

    def together(self, dtype: str) -> int:
        """How many rows of a packed matrix share one, their elements side by side in 32 bits."""
        ...

    def attends(self, dtype: str, size: int = 0) -> bool:
        """Whether there is a schedule for attention in one pass over queries, keys and values of that type.

        Args:
            dtype: of their elements.
            size: of a query and a key; 0 where that does not matter.
        """
        ...

    def winograd_width(self, shape: ConvShape) -> int | None:
        """Columns in a panel of the filters of a 3 x 3 convolution by Winograd's method; `None` if it is no faster."""
        ...


def parts_of(expr: relax.Expr) -> list[relax.Expr]:
    """The expressions that a tuple, an element of one, or a call is made of."""
    if isinstance(expr, relax.TupleGetItem):
        return [expr.tuple_value]
    if isinstance(expr, relax.Tuple):
        return list(expr.fields)
    return list(expr.args) if isinstance(expr, Call) else []
