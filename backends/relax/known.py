"""Shape arithmetic: small integer (and boolean) tensors whose elements are expressions over the symbolic sizes.

An emitter of data movement or of element-wise arithmetic asks here first. Where every input is known, so is the output,
and no kernel is made; a Reshape further down then sees the sizes it needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import tvm
import tvm_ffi
from tvm import sym, tirx

from backends.relax.forms import definition_of, is_choice, spelled_out
from backends.relax.values import ChannelsLast, Result, SymbolicInts, prim, static_int

if TYPE_CHECKING:
    from backends.relax.emitter import Emitter

Elements = np.ndarray[Any, np.dtype[Any]]
"""An array of `tirx` expressions (dtype `object`)."""

_MOST = 64
_LARGEST_SIZE = 1 << 40
_LOAD = tvm.ir.Op.get("te.tensor_load")


def known(ctx: Emitter, value: ir.Value | None) -> Elements | None:
    """The elements of a small integer or boolean tensor, in its shape, where they are known."""
    if value is None:
        return None
    constant = ctx.constant(value)
    if constant is not None and constant.dtype.kind == "b" and constant.size <= _MOST:
        return elements([tirx.const(bool(b), "bool") for b in constant.reshape(-1)], constant.shape)
    listed = ctx.ints(value)
    if listed is None:
        return None
    return elements(listed, ctx.static_shape(value))


def all_known(ctx: Emitter, values: Sequence[ir.Value | None]) -> list[Elements] | None:
    """The elements of every value that is given, or `None` if one of them is computed at run time."""
    arrays = [known(ctx, v) for v in values if v is not None]
    found = [a for a in arrays if a is not None]
    return found if arrays and len(found) == len(arrays) else None


def elements(listed: Sequence[tirx.Expr], shape: Sequence[int]) -> Elements:
    """An array of expressions from its elements in row-major order."""
    flat = np.empty(len(listed), object)
    for i, element in enumerate(listed):
        flat[i] = element
    return flat.reshape(tuple(shape))


def symbolic(array: Elements | tirx.Expr, dtype: str) -> SymbolicInts:
    """A result of shape arithmetic."""
    if not isinstance(array, np.ndarray):
        array = elements([array], ())
    return SymbolicInts(tuple(array.reshape(-1)), tuple(int(d) for d in array.shape), dtype)


def moved(ctx: Emitter, value: ir.Value | None, move: Callable[[Elements], Elements]) -> SymbolicInts | None:
    """Data movement on known elements: `move` rearranges the array."""
    array = known(ctx, value)
    return None if array is None else symbolic(move(array), ctx.dtype(value))


def combined(
    ctx: Emitter, values: Sequence[ir.Value | None], formula: Callable[..., tirx.Expr], dtype: str
) -> SymbolicInts | None:
    """Element-wise arithmetic on known elements, with broadcasting."""
    arrays = all_known(ctx, values)
    if arrays is None:
        return None
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    rows = zip(*(np.broadcast_to(a, shape).reshape(-1) for a in arrays), strict=True)
    results = [simplified(ctx, formula(*row)) for row in rows]
    return symbolic(elements([r if dtype == "bool" else prim(r) for r in results], shape), dtype)


def forward(ctx: Emitter, value: ir.Value | None) -> Result:
    """The value itself as a result, in the form in which it is known."""
    if (constant := ctx.constant(value)) is not None:
        return constant
    array = known(ctx, value)
    if array is not None:
        return symbolic(array, ctx.dtype(value))
    return ChannelsLast(ctx.channels_last(value)) if ctx.prefers_channels_last(value) else ctx.x(value)


def simplified(ctx: Emitter, expr: tirx.Expr) -> tirx.Expr:
    """The expression in its simplest form, given that no size is negative."""
    return expr if static_int(expr) is not None else _analyzer(ctx).simplify(expr)


def not_negative(ctx: Emitter, expr: tirx.Expr) -> bool:
    """Whether the expression is at least zero, whatever the symbolic sizes; of an element of a tensor nobody knows."""
    condition = tirx.GE(expr, prim(0))
    return not _reads(condition) and bool(_analyzer(ctx).can_prove(condition))


def _reads(expr: tirx.Expr) -> bool:
    """Whether an expression of `te` reads a tensor, of which TVM's analyzer cannot take note."""
    found: list[tvm.ir.Call] = []
    tvm_ffi.structural_walk(expr, (tvm.ir.Call, lambda call: found.append(call) if call.op.same_as(_LOAD) else None))
    return bool(found)


def same(ctx: Emitter, a: tirx.Expr, b: tirx.Expr) -> bool:
    """Whether two sizes are equal, whatever the symbolic sizes."""
    return bool(_analyzer(ctx).can_prove_equal(meant(ctx, a), meant(ctx, b)))


def meant(ctx: Emitter, size: tirx.Expr | int) -> tirx.Expr:
    """The size over the model's own symbols and choices between sizes: a derived one as what it stands for."""
    plain = spelled_out(ctx.definitions, prim(size))
    return (definition_of(ctx.definitions, plain) if is_choice(plain) else None) or plain


def _analyzer(ctx: Emitter) -> sym.Analyzer:
    analyzer = sym.Analyzer()
    for size in ctx.sizes.values():
        analyzer.bind(size, tvm.ir.Range.from_min_extent(prim(0), prim(_LARGEST_SIZE)))
    return analyzer
