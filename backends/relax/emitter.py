"""Walk the nodes of an ONNX graph and build a Relax function.

Shape letters are those of the operator specifications. A value is looked up in the form that its consumer works in:

* `ctx.x(value)`: a Relax expression with ONNX's own axis order;
* `ctx.channels_last(value)`: the same with the channels moved to the end (converted once, then remembered);
* `ctx.constant(value)`: a numpy array, if the value is a small constant; `ctx.is_weight(value)` tells a large one;
* `ctx.weight(value, transform, shape, ...)`: a constant as an argument of the compiled function, laid out for a kernel;
* `ctx.ints(value)`: the elements of a small integer tensor, as expressions over the symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from backends.relax.checks import require_reads_inside
from backends.relax.forms import (
    aligned_channels_last,
    initializer_type,
    materialised,
    named_size,
    sizes_of,
)
from backends.relax.packing import carried
from backends.relax.plan import Check
from backends.relax.tensor_call import tensor_call
from backends.relax.values import (
    ChannelsLast,
    Deferred,
    Packed,
    PanelChoice,
    Refused,
    Result,
    Slot,
    SymbolicInts,
    prim,
    static_int,
)

_MAX_INTS = 64  # Integer tensors of at most so many elements are followed symbolically.


class Emitter:
    """Emits one segment of a graph into one Relax function.

    Args:
        builder: the builder of the module that the function becomes part of; a function scope must be open while
        nodes are emitted.
        constants: the values of small initializers, by name.
        weights: the names of all initializers, small and large; their shapes and dtypes stand on the values.
        sizes: the symbolic sizes by name, shared by all segments of a model.
        definitions: the derived sizes, as expressions over the symbolic ones; shared likewise, grown by `derived`.
        tiles: how wide the target wants the panels of packed weights.
        learned: the names of the scalar initializers that kernels take as arguments.

    Attributes:
        packed: the weights that the emitted nodes take, in the order in which they were first asked for.
        deferred: what emits the node of a value that nobody has asked for yet.
        label: what the variables are called that the current node makes; see `backends.relax.attribution`.
        unsigned: of values of int8 the same plus 128 as uint8, where a node has asked for it.
        checks: what the emitted nodes need of the sizes, and only the run can tell.
    """

    def __init__(
        self,
        builder: relax.BlockBuilder,
        constants: Mapping[str, np.ndarray],
        weights: set[str],
        sizes: dict[str, tirx.Var],
        definitions: dict[tirx.Var, tirx.Expr],
        tiles: PanelChoice,
        learned: frozenset[str] = frozenset(),
    ) -> None:
        self.builder = builder
        self.constants = constants
        self.weights = weights
        self.sizes = sizes
        self.definitions = definitions
        self.tiles = tiles
        self.learned = learned
        self.packed: dict[Packed, relax.Var] = {}
        self.deferred: dict[ir.Value, Callable[[], None]] = {}
        self._slots: dict[ir.Value, Slot] = {}
        self.checks: list[Check] = []
        self.unsigned: dict[ir.Value, ir.Value] = {}
        self.label = ""
        self.kernel_name, self.node_name = "kernel", ""

    def bind(self, value: ir.Value, result: Result) -> None:
        """Make a result known as `value`."""
        slot = self._slots.setdefault(value, Slot(value))
        if isinstance(result, SymbolicInts):
            slot.ints = result
        elif isinstance(result, np.ndarray):
            slot.constant = result
        elif isinstance(result, Deferred):
            slot.deferred = result
        elif isinstance(result, ChannelsLast):
            slot.channels_last = self.emit(result.expr, value.name or "")
        else:
            slot.plain = self.emit(result, value.name or "")

    def x(self, value: ir.Value | None) -> relax.Var:
        """The value in ONNX's axis order."""
        slot = self._settled(value)
        if slot.plain is None:
            slot.plain = materialised(self, slot)
        return slot.plain

    def channels_last(self, value: ir.Value | None) -> relax.Var:
        """The value as [N, spatial..., C]."""
        slot = self._settled(value)
        if slot.channels_last is None:
            plain = self.x(value)
            rank = self.rank(value)
            slot.channels_last = self.emit(relax.op.permute_dims(plain, [0, *range(2, rank), 1])) if rank > 2 else plain
        return slot.channels_last

    def prefers_channels_last(self, value: ir.Value | None) -> bool:
        """Whether the value is known with its channels last, and not in ONNX's order."""
        if (slot := self.slot(value)).deferred is not None:
            return self.prefers_channels_last(slot.deferred.source)
        return slot.channels_last is not None and slot.plain is None

    def _settled(self, value: ir.Value | None) -> Slot:
        """All that is known of a value, which is emitted if that was put off."""
        slot = self.slot(value)
        if slot.deferred is not None:
            deferred, slot.deferred = slot.deferred, None
            self.bind(slot.value, deferred.emit())
        return slot

    def without_tensor(self, value: ir.Value) -> Result | None:
        """What is known of a value at compile time: a constant, or integers over the symbolic sizes."""
        slot = self._slots.get(value)
        return None if slot is None else slot.ints if slot.ints is not None else slot.constant

    def constant(self, value: ir.Value | None) -> np.ndarray | None:
        """The value as an array, if it is a small constant."""
        if value is None:
            return None
        slot = self.slot(value)
        if slot.constant is None and slot.ints is not None:
            known = [static_int(e) for e in slot.ints.elements]
            if all(k is not None for k in known):
                slot.constant = np.array(known, slot.ints.dtype).reshape(slot.ints.shape)
        return slot.constant

    def is_weight(self, value: ir.Value | None) -> bool:
        """Whether the value is an initializer, large or small."""
        return value is not None and value.name in self.weights

    def weight(
        self,
        value: ir.Value,
        transform: str = "identity",
        shape: Sequence[int] | None = None,
        dtype: str | None = None,
        **options: object,
    ) -> relax.Var:
        """An initializer as an argument of the function.

        Args:
            value: the initializer.
            transform: how it is laid out: a function of `backends.relax.packing`, by name.
            shape: the packed shape; the initializer's own by default.
            dtype: the packed dtype; the initializer's own by default.
            options: keyword arguments of the transform (hashable, JSON types).
        """
        own_shape, own_dtype = initializer_type(value)
        lie = tuple(own_shape if shape is None else shape)
        packed = Packed(value.name or "", transform, tuple(sorted(options.items())), lie, dtype or own_dtype)
        argument = relax.Var(f"w{len(self.packed)}", relax.TensorType(packed.shape, packed.dtype))
        return self.packed.setdefault(packed, argument)

    def ints(self, value: ir.Value | None) -> list[tirx.Expr] | None:
        """The elements of a small integer tensor (row-major) if they are known, as int64 expressions."""
        if value is None:
            return None
        slot = self.slot(value)
        if (
            slot.ints is None
            and slot.constant is not None
            and slot.constant.dtype.kind in "iu"
            and slot.constant.size <= _MAX_INTS
        ):
            slot.ints = SymbolicInts(
                tuple(prim(int(v)) for v in slot.constant.reshape(-1)), slot.constant.shape, str(slot.constant.dtype)
            )
        return None if slot.ints is None else list(slot.ints.elements)

    def static_ints(self, value: ir.Value | None, what: str) -> list[int] | None:
        """The elements of an optional integer input that must be known at compile time; `None` if it is absent.

        Raises:
            Refused: the input is present, but computed at run time.
        """
        if value is None:
            return None
        elements = self.ints(value)
        known = None if elements is None else [static_int(e) for e in elements]
        if known is None or any(k is None for k in known):
            raise Refused(f"{what} is computed at run time")
        return [int(k) for k in known if k is not None]

    def required_constant(self, value: ir.Value | None, what: str) -> np.ndarray:
        """A small constant that must be known at compile time.

        Raises:
            Refused: it is computed at run time.
        """
        array = self.constant(value)
        if array is None:
            raise Refused(f"{what} is computed at run time")
        return array

    def shape(self, value: ir.Value | None) -> list[tirx.Expr]:
        """The sizes of the value's axes, in ONNX's order."""
        slot = self.slot(value)
        if slot.constant is not None:
            return [prim(d) for d in slot.constant.shape]
        if slot.ints is not None:
            return [prim(d) for d in slot.ints.shape]
        if slot.deferred is not None:
            return self.shape(slot.deferred.source)
        if slot.plain is None and slot.channels_last is not None:
            n, *spatial, c = sizes_of(slot.channels_last)
            return [n, c, *spatial]
        if slot.plain is None and self.is_weight(value):  # asking for its shape must not make it an argument
            return [prim(d) for d in initializer_type(slot.value)[0]]
        return sizes_of(self.x(value))

    def rank(self, value: ir.Value | None) -> int:
        """The number of axes."""
        return len(self.shape(value))

    def static_shape(self, value: ir.Value | None, what: str = "a shape") -> list[int]:
        """The sizes of the axes where all must be known at compile time.

        Raises:
            Refused: one of them is symbolic.
        """
        sizes = [static_int(d) for d in self.shape(value)]
        if any(d is None for d in sizes):
            raise Refused(f"{what} depends on a symbolic size")
        return [int(d) for d in sizes if d is not None]

    def dtype(self, value: ir.Value | None) -> str:
        """The element type, as a numpy or ml_dtypes name."""
        slot = self.slot(value)
        if slot.constant is not None:
            return str(slot.constant.dtype)
        if slot.ints is not None:
            return slot.ints.dtype
        if slot.deferred is not None:
            return slot.deferred.dtype
        expr = slot.plain if slot.plain is not None else slot.channels_last
        if expr is None and self.is_weight(value):
            return initializer_type(slot.value)[1]
        return str((expr if expr is not None else self.x(value)).ty.dtype)

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from the front.

        Raises:
            Refused: there is no such axis.
        """
        if not -rank <= axis < max(rank, 1):
            raise Refused(f"axis {axis} of a tensor of rank {rank}")
        return axis % max(rank, 1)

    def emit(self, expr: relax.Expr, name: str = "") -> relax.Var:
        """Bind an expression to a variable (and infer its type)."""
        if isinstance(expr, relax.Var):
            return expr
        return self.builder.emit(expr, self.label)

    def te(self, function: Callable[..., te.Tensor], *args: object, **kwargs: object) -> relax.Var:
        """Emit a kernel described by a tensor expression over the arguments."""
        name = kwargs.pop("primfunc_name_hint", self.kernel_name)
        inspect = partial(require_reads_inside, self)
        return self.emit(tensor_call(self.builder, function, args, kwargs, name=str(name), inspect=inspect))

    def kernel(
        self, name: str, function: tirx.PrimFunc, args: Sequence[relax.Expr], out: relax.Type | list[relax.Type]
    ) -> relax.Var:
        """Emit a call of a finished kernel: inputs first, then outputs.

        The function may carry the attribute `op_pattern` (TVM's `OpPatternKind`) to take part in fusion.
        """
        var = self.builder.add_func(function, name)
        return self.emit(relax.call_tir(var, list(args), out))

    def elementwise(self, values: Sequence[ir.Value | None], function: Callable[..., relax.Expr]) -> Result:
        """Apply an element-wise function, with ONNX's broadcasting, in the axis order in which the operands lie."""
        operands = [v for v in values if v is not None]
        if any(self.prefers_channels_last(v) for v in operands):
            rank = max(self.rank(v) for v in operands)
            aligned = [aligned_channels_last(self, v, rank) for v in operands]
            if all(a is not None for a in aligned):
                return ChannelsLast(function(*aligned))
        return function(*(self.operand(v) for v in operands))

    def operand(self, value: ir.Value) -> relax.Expr:
        """The value in ONNX's order; a constant scalar becomes an immediate in the kernel, unless it is learned."""
        slot = self.slot(value)
        if value.name in self.learned:
            return self.weight(value)
        if slot.constant is not None and slot.constant.ndim == 0:
            return relax.const(slot.constant, str(slot.constant.dtype))
        return self.x(value)

    def size(self, name: str) -> tirx.Var:
        """The symbolic size of that name."""
        return self.sizes.setdefault(name, tirx.Var(name, "int64"))

    def derived(self, expr: tirx.Expr) -> tirx.Expr:
        """A computed size as a symbol of its own, so that the kernels that use it need not know how it is computed.

        Equal expressions give the same symbol. A constant or a symbol stays what it is.
        """
        return named_size(self.definitions, expr)

    def forget(self, value: ir.Value) -> None:
        """Make a value unknown again."""
        del self._slots[value]

    def slot(self, value: ir.Value | None) -> Slot:
        """All that is known of a value.

        Raises:
            Refused: nothing is known here.
        """
        if value is None:
            raise Refused("a required input is missing")
        if value in self.deferred:
            self.deferred.pop(value)()
        slot = self._slots.get(value)
        if slot is None:
            if value.name not in self.weights:
                raise Refused(f"its input {value.name!r} is not available here")
            constant = self.constants.get(value.name or "")
            slot = self._slots[value] = Slot(value, constant=None if constant is None else carried(constant))
        return slot
