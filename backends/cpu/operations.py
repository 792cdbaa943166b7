"""Operations of our own: TVM's passes carry them along until everything else has been lowered."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tvm import tirx
from tvm.ir import Call, Op
from tvm.ir.op import register_op_attr

from backends.relax.loops import Expr, i64, known

__all__ = ["OPAQUE", "OPAQUE_IR", "hidden", "operation"]

OPAQUE = "tersor.opaque"
OPAQUE_IR = """
define i64 @tersor_opaque(i64 %x) alwaysinline {
  %r = call i64 asm "", "=r,0"(i64 %x)
  ret i64 %r
}
"""
"""Empty assembly that could have changed its operand."""
_UNROLLED_STEPS = 32
"""LLVM writes out a loop of up to about so many steps; of all steps together it then keeps more in registers than
there are, and the sums of a register tile go to the stack and back."""


def hidden(steps: Expr) -> Expr:
    """The number of a loop's steps: a small constant is hidden from LLVM, so that it leaves the loop a loop."""
    count = known(steps)
    if count is None or not 1 < count <= _UNROLLED_STEPS:
        return steps
    return tirx.call_intrin("int64", operation(OPAQUE, _opaque), i64(count))


def _opaque(call: Call) -> Expr:
    return tirx.call_pure_extern("int64", "tersor_opaque", *call.args)


@functools.cache
def operation(name: str, lowered: Callable[[Call], Expr] | None = None, *, vectorizable: bool = False) -> Op:
    """An operation, made known to TVM when it is first asked for (TVM takes it only once).

    Args:
        name: in TVM's table.
        lowered: what replaces a call of it before code is generated; `None` if a pass of ours takes all calls away.
        vectorizable: whether it may stand in a loop that becomes one vector operation.
    """
    register_op_attr(name, "TCallEffectKind", int(tirx.CallEffectKind.Pure.value))
    register_op_attr(name, "TScriptPrinterName", name.partition(".")[2])
    if vectorizable:
        register_op_attr(name, "TVectorizable", True)
    if lowered is not None:
        tirx.register_intrin_lowering(name, target="llvm", f=lowered)
    return Op.get(name)
