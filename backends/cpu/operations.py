"""Operations of our own: TVM's passes carry them along until everything else has been lowered."""

from __future__ import annotations

import functools
from collections.abc import Callable

from tvm import tirx
from tvm.ir import Call, Op
from tvm.ir.op import register_op_attr

from backends.cpu.loops import Expr

__all__ = ["operation"]


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
