"""Sums of several products: each product is added to the sum before it, in the sum's place.

    a = p0 + x; b = a + p1; c = b + p2     of three products with the same shape

`FuseOps` makes the first product and all additions one kernel, which then reads all other products: they are all
stored, and there at one time. A view between the additions, which costs nothing, leaves a kernel for each product and
its addition, and the arena writes its result over the sum before it.

Only sums of three products and more are treated so: of two, one is stored in any case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.ir import Call, GlobalVar, Op

from backends.relax.values import parts_of

__all__ = ["sums_apart"]

_CALL_TIR = Op.get("relax.call_tir")
_ELEMENTWISE, _BROADCAST, _PRODUCT = 0, 1, 4
"""TVM's patterns of kernels; the last is what element-wise kernels behind it are fused to."""
_FEWEST = 3


def sums_apart(module: tvm.IRModule) -> tvm.IRModule:
    """The module with a view in front of each addition of a further product.

    Args:
        module: its kernels are annotated with their patterns, and not fused.
    """
    changed = module.clone()
    for var, function in module.functions.items():
        if isinstance(function, relax.Function):
            found = _Sums(function, module).views()
            if found:
                changed.update_func(var, _with_views(function, found))
    return changed


class _Sums:
    """Finds the additions of one function.

    Args:
        function: the function.
        module: has its kernels.
    """

    def __init__(self, function: relax.Function, module: tvm.IRModule) -> None:
        self.module = module
        self.bindings = [b for block in function.body.blocks for b in block.bindings]
        self.uses = Counter(var for b in self.bindings for var in _variables(b.value))
        self.uses.update(_variables(function.body.body))

    def views(self) -> dict[int, relax.Var]:
        """By binding: the operand that is read through a view, which is the sum so far.

        That is the one of more products; else the one that something was added to; else what was made first.
        """
        products: dict[relax.Var, int] = {}  # summed up in a variable that only one other needs
        sums: dict[relax.Var, list[tuple[int, relax.Var]]] = {}
        rank: dict[relax.Var, tuple[int, bool, int]] = {}
        largest: dict[int, relax.Var] = {}
        for step, binding in enumerate(self.bindings):
            pattern = self._pattern(binding.value)
            if pattern is None:
                continue
            operands = dict.fromkeys(var for var in _variables(binding.value) if products.get(var))
            if pattern == _PRODUCT:
                count, before = 1, []
            elif pattern in (_ELEMENTWISE, _BROADCAST):
                before = [pair for var in operands for pair in sums.get(var, ())]
                count = sum(products[var] for var in operands)
                if len(operands) == 2:
                    before = [*before, (step, max(operands, key=rank.__getitem__))]
            else:
                continue
            if count >= _FEWEST:
                largest.update(before)
            if self.uses[binding.var] == 1:
                products[binding.var], sums[binding.var] = count, before
                rank[binding.var] = (count, pattern != _PRODUCT, -step)
        return largest

    def _pattern(self, value: relax.Expr) -> int | None:
        """TVM's pattern of the kernel that is called."""
        if not isinstance(value, Call) or value.op != _CALL_TIR or not isinstance(value.args[0], GlobalVar):
            return None
        attributes = self.module[value.args[0]].attrs
        return None if attributes is None or "op_pattern" not in attributes else int(attributes["op_pattern"])


def _variables(expr: relax.Expr) -> list[relax.Var]:
    """What an expression reads, as often as it does."""
    if isinstance(expr, relax.Var):
        return [expr]
    return [var for part in parts_of(expr) for var in _variables(part)]


def _with_views(function: relax.Function, views: Mapping[int, relax.Var]) -> relax.Function:
    builder = relax.BlockBuilder()
    blocks, step = [], 0
    for block in function.body.blocks:
        bindings = []
        for binding in block.bindings:
            operand = views.get(step)
            step += 1
            if operand is None:
                bindings.append(binding)
                continue
            seen = builder.normalize(relax.op.reshape(operand, operand.ty.shape))
            view = relax.DataflowVar(f"{operand.name}_so_far", seen.ty)
            added = builder.normalize(_replaced(binding.value, operand, view))
            bindings += [relax.VarBinding(view, seen), relax.VarBinding(binding.var, added)]
        kind = relax.DataflowBlock if isinstance(block, relax.DataflowBlock) else relax.BindingBlock
        blocks.append(kind(bindings))
    body = relax.SeqExpr(blocks, function.body.body)
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)


def _replaced(call: Call, operand: relax.Var, view: relax.Var) -> Call:
    """The call of a kernel with another operand."""
    kernel, given, *rest = call.args
    operands = relax.Tuple([view if field.same_as(operand) else field for field in given.fields])
    return Call(call.op, [kernel, operands, *rest], call.attrs, call.ty_args)
