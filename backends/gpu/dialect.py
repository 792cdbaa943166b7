"""What TVM's generator of OpenCL does not know of the language: functions by their names there, and two constants.

* TVM calls `acosf` and the like, as C has them; OpenCL has one `acos` for all types.
* The least integers are no literals in C: `-2147483648` is a `long` there, and makes a call of `select` ambiguous.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call

__all__ = ["opencl_functions", "opencl_literals"]

_FUNCTIONS = {
    name: name
    for name in (
        "acos acosh asin asinh atan atan2 atanh ceil copysign cos cosh erf exp exp10 exp2 fabs floor fmod hypot ldexp "
        "log log10 log1p log2 nextafter pow rsqrt sin sinh sqrt tan tanh trunc"
    ).split()
} | {"nearbyint": "rint", "round": "round"}
_FLOATS = ("float32", "float64", "float16")
_LEAST = {"int32": -(1 << 31), "int64": -(1 << 63)}


def opencl_functions(module: tvm.IRModule) -> tvm.IRModule:
    """Calls of mathematical functions as OpenCL has them; before TVM lowers what it knows."""

    def function(node: Call) -> tirx.Expr:
        name = str(getattr(node.op, "name", ""))
        known = _FUNCTIONS.get(name.rpartition(".")[2])
        if known is None or not name.startswith(("prim.", "tirx.")) or not str(node.expr_ty()).startswith(_FLOATS):
            return node
        return tirx.call_pure_extern(str(node.expr_ty()), known, *node.args)

    return _mapped(module, (Call, function))


def opencl_literals(module: tvm.IRModule) -> tvm.IRModule:
    """The least integers as differences; last, since TVM would compute them."""

    def literal(node: tirx.IntImm) -> tirx.Expr:
        dtype = str(node.expr_ty())
        if int(node.value) != _LEAST.get(dtype):
            return node
        return tirx.Sub(tirx.const(int(node.value) + 1, dtype), tirx.const(1, dtype))

    return _mapped(module, (tirx.IntImm, literal))


def _mapped(module: tvm.IRModule, rule: tuple[type, object]) -> tvm.IRModule:
    functions = {}
    for var, function in module.functions.items():
        body = tvm_ffi.structural_map(function.body, [rule])
        changed = tirx.PrimFunc(function.params, body, function.ret_type)
        for key, value in (function.attrs or {}).items():
            changed = changed.with_attr(key, value)
        functions[var] = changed
    return tvm.IRModule(functions, attrs=module.attrs)
