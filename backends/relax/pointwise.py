"""Element-wise kernels from formulas over scalars, with ONNX's broadcasting.

A formula takes one scalar expression for each operand and gives one. float16 and bfloat16 operands reach it as
float32, and its result is rounded back, so that a formula may be a chain of operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import tvm
import tvm_ffi
from tvm import relax, te, tirx

from backends.relax.checks import require
from backends.relax.emitter import Emitter
from backends.relax.known import combined, meant, same
from backends.relax.scalars import cast, scalar_type, wider
from backends.relax.values import Result, static_int

Formula = Callable[..., tirx.Expr]


def pointwise(
    ctx: Emitter,
    values: Sequence[ir.Value | None],
    formula: Formula,
    name: str,
    dtype: str | None = None,
    *,
    keep_zero: bool = False,
    widen: bool = True,
) -> Result:
    """Apply a formula to each element of the broadcast operands.

    Args:
        ctx: the emitter.
        values: the operands; an absent one is left out of the formula's arguments.
        formula: scalars in, scalar out.
        name: what the kernel is called.
        dtype: the result's type where it is not that of the first operand.
        keep_zero: hide a constant 0.0 from TVM, which takes `x + 0.0` for x and `x * 0.0` for 0.
        widen: hand float16 and bfloat16 to the formula as float32.
    """
    present = [v for v in values if v is not None]
    result_dtype = dtype or ctx.dtype(present[0])
    if result_dtype in ("int64", "int32", "bool"):
        known = combined(ctx, present, formula, result_dtype)
        if known is not None:
            return known

    def emit(*operands: relax.Expr) -> relax.Expr:
        return kernel(ctx, operands, formula, name, result_dtype, keep_zero=keep_zero, widen=widen)

    return ctx.elementwise(present, emit)


def kernel(
    ctx: Emitter,
    operands: Sequence[relax.Expr],
    formula: Formula,
    name: str,
    dtype: str,
    *,
    keep_zero: bool = False,
    widen: bool = True,
) -> relax.Var:
    """Emit the kernel that applies a formula to operands whose axes are already aligned at the end; see `pointwise`."""
    immediates = [_immediate(o, keep_zero) for o in operands]
    tensors = [o for o, immediate in zip(operands, immediates, strict=True) if immediate is None]

    def compute(*arguments: te.Tensor) -> te.Tensor:
        remaining = iter(arguments)
        sources = [i if i is not None else next(remaining) for i in immediates]
        shape = broadcast_shape(ctx, [t.shape for t in arguments])

        def element(*index: tirx.Expr) -> tirx.Expr:
            scalars = [s if not isinstance(s, te.Tensor) else read(ctx, s, shape, index) for s in sources]
            return cast(formula(*(cast(s, wider(scalar_type(s))) if widen else s for s in scalars)), dtype)

        return te.compute(shape, element, name=name)

    return ctx.te(compute, *tensors)


def broadcast_shape(ctx: Emitter, shapes: Sequence[Sequence[tirx.Expr]]) -> list[tirx.Expr]:
    """The shape that tensors of these shapes broadcast to; the run checks what cannot be proved.

    Raises:
        Refused: two sizes differ.
    """
    rank = max((len(s) for s in shapes), default=0)
    return [_broadcast_size(ctx, [s[i - rank + len(s)] for s in shapes if i >= rank - len(s)]) for i in range(rank)]


def read(ctx: Emitter, tensor: te.Tensor, shape: Sequence[tirx.Expr], index: Sequence[tirx.Expr]) -> tirx.Expr:
    """The element of a tensor that a position in the broadcast shape reads."""
    skip = len(shape) - len(tensor.shape)
    places = []
    for size, wanted, position in zip(tensor.shape, shape[skip:], index[skip:], strict=True):
        if static_int(size) == 1 and static_int(wanted) != 1:
            places.append(tirx.const(0, "int64"))
        elif static_int(size) is None and not same(ctx, size, wanted):
            places.append(tirx.Select(tirx.EQ(size, tirx.const(1, "int64")), tirx.const(0, "int64"), position))
        else:
            places.append(position)
    return tensor(*places)


def _broadcast_size(ctx: Emitter, sizes: Sequence[tirx.Expr]) -> tirx.Expr:
    """The one size that is not 1: a fixed one, if there is one; else a symbolic one, or the next where it is 1."""
    wide = [s for s in sizes if static_int(s) != 1]
    fixed = [s for s in wide if static_int(s) is not None]
    chosen = (fixed or wide or list(sizes))[0]
    if not fixed:
        for size in wide[1:]:
            if _absorbs(ctx, size, chosen):
                chosen = size
            elif not _absorbs(ctx, chosen, size) and not same(ctx, chosen, size):
                is_one = tirx.EQ(meant(ctx, chosen), tirx.const(1, "int64"))
                chosen = ctx.derived(tirx.Select(is_one, meant(ctx, size), meant(ctx, chosen)))
    for size in wide:
        if not chosen.same_as(size):
            require(ctx, size, chosen, "sizes that are broadcast", or_one=True)
    return chosen


def _absorbs(ctx: Emitter, whole: tirx.Expr, part: tirx.Expr) -> bool:
    """Whether a size is what another one was broadcast to, at once or step by step, and so what both broadcast to."""
    wanted = meant(ctx, part)
    pending: list[tirx.Expr] = [whole]
    seen: set[tirx.Expr] = set()
    while pending:
        size = meant(ctx, pending.pop())
        if tvm_ffi.structural_equal(size, wanted):
            return True
        choice = ctx.definitions.get(size) if isinstance(size, tirx.Var) else size
        if isinstance(choice, tirx.Select) and size not in seen:
            seen.add(size)
            pending += [choice.true_value, choice.false_value]
    return False


def _immediate(operand: relax.Expr, keep_zero: bool) -> tirx.Expr | None:
    """The value of a constant without axes."""
    if not isinstance(operand, tvm.ir.GenericConst) or operand.ty.ndim != 0:
        return None
    value = operand.value.numpy()[()].item()
    if keep_zero and isinstance(value, float) and value == 0.0:
        return None
    return tirx.const(value, str(operand.ty.dtype))
