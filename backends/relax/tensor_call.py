"""Calls of kernels that are written as tensor expressions.

Unlike with Relax's own helper, a tensor expression may use the symbolic sizes of its surroundings: those that no shape
of an argument or result tells are passed to the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm_ffi
from tvm import ir, relax, s_tir, te, tirx

TAIL = "tersor.tail"
"""An attribute of a result that element-wise operations may be fused behind, where TVM does not see it by itself."""
ALONE = "tersor.alone"
"""An attribute of a result that nothing may be fused behind: its schedule stores it as it is."""
_BEFORE_ELEMENTWISE = 4
_OPAQUE = 8
"""TVM's `OpPatternKind` of a kernel that element-wise ones are fused behind, and of one that is fused with nothing."""


def tensor_call(
    builder: relax.BlockBuilder,
    function: Callable[..., te.Tensor | Sequence[te.Tensor]],
    args: Sequence[Any],
    options: Mapping[str, Any],
    *,
    name: str,
    inspect: Callable[[Sequence[te.Tensor]], None] = lambda _: None,
) -> relax.Expr:
    """A call of the kernel that `function(*args, **options)` describes.

    Args:
        builder: the module that the kernel becomes part of.
        function: gets a tensor for each Relax expression among the arguments (also in lists), the others as they are.
        args: its arguments.
        options: its keyword arguments, passed on as they are.
        name: the kernel's name.
        inspect: told of the function's results.

    Returns:
        A call that gives a tensor, or a tuple if the function gives several.
    """
    given: list[relax.Expr] = []
    params: list[te.Tensor] = []

    def parameter(arg: Any) -> Any:
        if isinstance(arg, (list, tuple)):
            return type(arg)(parameter(a) for a in arg)
        if not isinstance(arg, ir.Expr) or ir.is_prim_expr(arg):
            return arg
        given.append(arg)
        label = arg.name if isinstance(arg, relax.Var) else f"x{len(params)}"
        params.append(te.placeholder(list(arg.ty.shape.values), str(arg.ty.dtype), label))
        return params[-1]

    result = function(*(parameter(a) for a in args), **options)
    outputs = [result] if isinstance(result, te.Tensor) else list(result)
    inspect(outputs)
    sizes = _untold(params, outputs)
    kernel = s_tir.renew_defs(te.create_prim_func([*params, *sizes, *outputs], "int64"))
    attributes = {key for out in outputs if isinstance(out.op, te.ComputeOp) for key in out.op.attrs}
    # TVM's FuseTIR takes a size that is passed for defined twice, and fails.
    if sizes or ALONE in attributes:
        kernel = kernel.with_attr("op_pattern", _OPAQUE)
    elif TAIL in attributes:
        kernel = kernel.with_attr("op_pattern", _BEFORE_ELEMENTWISE)
    var = builder.add_func(kernel.without_attr("global_symbol"), name)
    types = [relax.TensorType(list(out.shape), str(out.dtype)) for out in outputs]
    return relax.call_tir(var, [*given, *sizes], types[0] if isinstance(result, te.Tensor) else types)


def _untold(params: Sequence[te.Tensor], outputs: Sequence[te.Tensor]) -> list[tirx.Var]:
    """The symbolic sizes that a kernel uses and that are not an axis of one of its arguments or results."""
    found: list[tirx.Var] = []
    own: set[tirx.Var] = set()
    done: list[te.Tensor] = []
    open_ = [*params, *outputs]
    while open_:
        tensor = open_.pop()
        if any(tensor.same_as(d) for d in done):  # `==` of tensors without axes is an error
            continue
        done.append(tensor)
        found += [v for size in tensor.shape for v in _variables(size)]
        if isinstance(tensor.op, te.ComputeOp):
            axes = [*tensor.op.axis, *tensor.op.reduce_axis]
            own |= {axis.var for axis in axes} | {v for body in tensor.op.body for v in _combined(body)}
            found += [v for axis in axes for v in _variables(axis.dom.extent)]
            found += [v for body in tensor.op.body for v in _variables(body)]
            open_ += list(tensor.op.input_tensors)
        elif isinstance(tensor.op, te.ExternOp):
            own |= _bound(tensor.op.body)
            found += _variables(tensor.op.body)
            open_ += list(tensor.op.inputs)
    told = {size for tensor in (*params, *outputs) for size in tensor.shape if isinstance(size, tirx.Var)}
    return list(dict.fromkeys(v for v in found if v not in own and v not in told))


def _combined(body: ir.Expr) -> list[tirx.Var]:
    """The variables by which a reduction names what it combines."""
    return [*body.combiner.lhs, *body.combiner.rhs] if isinstance(body, tirx.Reduce) else []


def _bound(body: tirx.Stmt) -> set[tirx.Var]:
    """The variables that a statement binds itself."""
    found: set[tirx.Var] = set()
    loops = (tirx.For, lambda statement: found.add(statement.loop_var))
    bindings = (tirx.Bind, lambda statement: found.add(statement.var))
    tvm_ffi.structural_walk(body, [loops, bindings])
    return found


def _variables(expr: ir.Expr | tirx.Stmt) -> list[tirx.Var]:
    found: list[tirx.Var] = []
    tvm_ffi.structural_walk(expr, (tirx.Var, lambda v: found.append(v) if ir.is_prim_var(v) else None))
    return found
