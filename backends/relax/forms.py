"""The forms of a value: its sizes and type, a tensor from symbolic integers, an operand with its channels last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import tvm_ffi
from tvm import relax, sym, te, tirx

from backends.relax.narrow import is_narrow
from backends.relax.size_formula import formula
from backends.relax.values import Refused, Slot, SymbolicInts, prim, static_int

if TYPE_CHECKING:
    from backends.relax.emitter import Emitter


def element_name(dtype: ir.DataType) -> str:
    """The numpy or ml_dtypes name of an ONNX element type."""
    return "string" if dtype == ir.DataType.STRING else str(np.dtype(dtype.numpy()))


def dtype_name(dtype: ir.DataType) -> str:
    """The type in which a compiled function keeps elements of an ONNX type: of narrow ones it keeps bytes."""
    return "uint8" if is_narrow(dtype) else element_name(dtype)


def sizes_of(expr: relax.Expr) -> list[tirx.Expr]:
    """The sizes of an expression's axes.

    Raises:
        Refused: they are known only at run time.
    """
    shape = expr.ty.shape if isinstance(expr.ty, relax.TensorType) else None
    if shape is None or not isinstance(shape, relax.ShapeExpr):
        raise Refused("a shape that is known only at run time")
    return [prim(d) for d in shape.values]


def is_known(ctx: Emitter, value: ir.Value) -> bool:
    """Whether the value can be asked for here; what only another segment has cannot."""
    try:
        ctx.slot(value)
    except Refused:
        return False
    return True


def tensor_of_ints(ctx: Emitter, ints: SymbolicInts) -> relax.Var:
    """Symbolic integers as a tensor."""
    elements = [tirx.Cast(ints.dtype, e) if ints.dtype != "int64" else e for e in ints.elements]

    def build() -> te.Tensor:
        def element(*index: tirx.Expr) -> tirx.Expr:
            position = prim(0)
            for i, d in zip(index, ints.shape, strict=True):
                position = position * d + i
            chosen = elements[-1]
            for k in range(len(elements) - 2, -1, -1):
                chosen = tirx.Select(position == k, elements[k], chosen)
            return chosen

        return te.compute(ints.shape, element, name="sizes")

    if not elements:
        return ctx.emit(relax.const(np.zeros(ints.shape, ints.dtype), ints.dtype))
    return ctx.te(build)


def aligned_channels_last(ctx: Emitter, value: ir.Value, rank: int) -> relax.Expr | None:
    """An operand of an element-wise operation with its channels last, or `None` where its axes do not line up."""
    own = ctx.rank(value)
    slot = ctx.slot(value)
    if own == 0:
        return ctx.operand(value)
    if value.name in ctx.learned:
        return ctx.weight(value)
    if slot.constant is not None and slot.constant.size == 1:
        return relax.const(slot.constant.reshape(()), str(slot.constant.dtype))
    if own == rank:
        if slot.plain is not None and slot.channels_last is None and not ctx.is_weight(value):
            spatial = [static_int(d) for d in ctx.shape(value)[2:]]
            if all(d == 1 for d in spatial):
                shape = ctx.shape(value)
                slot.channels_last = ctx.emit(
                    relax.op.reshape(slot.plain, relax.ShapeExpr([shape[0], *shape[2:], shape[1]]))
                )
        return ctx.channels_last(value)
    sizes = ctx.shape(value)
    missing = rank - own
    padded = [prim(1)] * missing + sizes
    expr = ctx.emit(relax.op.reshape(ctx.x(value), relax.ShapeExpr(padded)))
    if own <= rank - 2 and static_int(padded[1]) == 1 and all(static_int(d) == 1 for d in padded[2:]):
        return ctx.emit(relax.op.reshape(expr, relax.ShapeExpr([padded[0], *padded[2:], padded[1]])))
    return ctx.emit(relax.op.permute_dims(expr, [0, *range(2, rank), 1]))


def spelled_out(definitions: Mapping[tirx.Var, tirx.Expr], expr: tirx.Expr) -> tirx.Expr:
    """An expression with derived sizes as what they stand for; but a choice between two sizes keeps its name.

    Each broadcast of sizes that nobody can compare is a choice, and the next one has it in it more than once: written
    out, a chain of a dozen is longer than any compiler can read.
    """
    known = {v: e for v, e in definitions.items() if not is_choice(e)}
    return tvm_ffi.structural_map(expr, (tirx.Var, lambda v: known.get(v, v)))


def is_choice(expr: tirx.Expr) -> bool:
    """Whether a size is one of two, as a run decides."""
    return isinstance(expr, tirx.Select)


def named_size(definitions: dict[tirx.Var, tirx.Expr], expr: tirx.Expr) -> tirx.Expr:
    """See `Emitter.derived`; `definitions` grows where the expression is new."""
    plain = sym.Analyzer().simplify(spelled_out(definitions, expr))
    if isinstance(plain, (tirx.IntImm, tirx.Var)):
        return plain
    known = definition_of(definitions, plain)
    if known is None:
        formula(plain)  # refuses what the run cannot compute, as long as the node can still be refused
        known = tirx.Var(f"size {len(definitions)}", "int64")  # no name that a model's sizes have; see `size_name`
        definitions[known] = plain
    return known


def definition_of(definitions: Mapping[tirx.Var, tirx.Expr], plain: tirx.Expr) -> tirx.Var | None:
    """The name that stands for an expression which is spelled out."""
    return next((v for v, e in definitions.items() if tvm_ffi.structural_equal(e, plain)), None)


def initializer_type(value: ir.Value) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of an initializer.

    Raises:
        Refused: it has none.
    """
    if value.shape is None or value.dtype is None:
        raise Refused(f"the initializer {value.name!r} has no type")
    return tuple(int(d) for d in value.shape.numpy()), dtype_name(value.dtype)


def literal(array: np.ndarray) -> relax.Expr:
    """A constant of the module; one without elements cannot be stored in it."""
    if array.size == 0:
        return relax.op.zeros(relax.ShapeExpr(list(array.shape)), str(array.dtype))
    return relax.const(array, str(array.dtype))


def materialised(ctx: Emitter, slot: Slot) -> relax.Expr:
    """A value in ONNX's axis order, from what else is known of it.

    Raises:
        Refused: nothing is.
    """
    if slot.channels_last is not None:
        rank = len(sizes_of(slot.channels_last))
        order = [0, rank - 1, *range(1, rank - 1)]
        return ctx.emit(relax.op.permute_dims(slot.channels_last, order)) if rank > 2 else slot.channels_last
    if slot.constant is not None and slot.constant.size <= 1:
        return ctx.emit(literal(slot.constant))
    if slot.value.name in ctx.weights:
        return ctx.weight(slot.value)
    if slot.ints is not None:
        return tensor_of_ints(ctx, slot.ints)
    if slot.constant is not None:
        return ctx.emit(literal(slot.constant))
    raise Refused(f"its input {slot.value.name!r} is not available here")
