"""What TVM's generator of OpenCL does not know of the language: functions by their names there, and constants.

* TVM calls `acosf` and the like, as C has them; OpenCL has one `acos` for all types.
* float16 is an extension that few CPUs and not all GPUs have. Kernels compute in float32 (`computed_in_float32`); what
  lies in memory is read and written by `vload_half` and `vstore_half`, which every device has.
* The least integers are no literals in C: `-2147483648` is a `long` there, and makes a call of `select` ambiguous.
* It writes floats with seven decimal digits, where float32 takes nine and float64 seventeen: others are given by their
  bits.
"""

from __future__ import annotations

import re

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import Call, TensorLoad

__all__ = ["helpers", "opencl_functions", "opencl_halves", "opencl_literals"]

_NAMES = (
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "copysign", "cos", "cosh", "erf", "exp"),
    *("exp10", "exp2", "fabs", "floor", "fmod", "hypot", "ldexp", "log", "log10", "log1p", "log2", "nextafter", "pow"),
    *("round", "rsqrt", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
)
_FUNCTIONS = {**{name: name for name in _NAMES}, "nearbyint": "rint"}
_ROUND = "tersor_rounded_to_half"
_FLOATS = ("float32", "float64", "float16")
_LEAST = {"int32": -(1 << 31), "int64": -(1 << 63)}
_BITS = {"float32": ("int32", "as_float"), "float64": ("int64", "as_double")}
"""The integer that has a type's bits, and OpenCL's function that takes it for a float."""


def opencl_functions(module: tvm.IRModule) -> tvm.IRModule:
    """Calls of mathematical functions as OpenCL has them; before TVM lowers what it knows."""

    def function(node: Call) -> tirx.Expr:
        name = str(getattr(node.op, "name", ""))
        known = _FUNCTIONS.get(name.rpartition(".")[2])
        if known is None or not name.startswith(("prim.", "tirx.")) or not str(node.expr_ty()).startswith(_FLOATS):
            return node
        return tirx.call_pure_extern(str(node.expr_ty()), known, *node.args)

    return _mapped(module, (Call, function))


def opencl_halves(module: tvm.IRModule) -> tvm.IRModule:
    """Loads and stores of float16 as conversions; behind TVM's vectorizer, on flat buffers."""

    def address(buffer: tirx.Var, index: tirx.Expr) -> tuple[str, tirx.Expr]:
        lanes, first = "", index
        if isinstance(index, tirx.Ramp):
            lanes, first = str(index.lanes), index.base
        return lanes, tirx.address_of(tirx.BufferLoad(buffer, [first]))

    def load(node: TensorLoad) -> tirx.Expr:
        if str(node.source.dtype) != "float16":
            return node
        lanes, place = address(node.source, node.indices[0])
        kind = f"float32x{lanes}" if lanes else "float32"
        return tirx.call_pure_extern(kind, f"vload_half{lanes}", tirx.const(0, "int32"), place)

    def store(node: tirx.BufferStore) -> tirx.Stmt:
        if str(node.buffer.dtype) != "float16":
            return node
        lanes, place = address(node.buffer, node.indices[0])
        value = node.value
        if isinstance(value, Call) and str(getattr(value.args[0], "value", "")).startswith(_ROUND):
            value = value.args[1]  # the store rounds
        zero = tirx.const(0, "int32")
        return tirx.Evaluate(tirx.call_extern("void", f"vstore_half{lanes}_rte", value, zero, place))

    def cast(node: tirx.Cast) -> tirx.Expr:
        kind, _, lanes = str(node.expr_ty()).partition("x")
        source = str(node.value.expr_ty()).partition("x")[0]
        wide = f"float32x{lanes}" if lanes else "float32"
        if kind == "float16":
            return tirx.call_pure_extern(wide, f"{_ROUND}{lanes}", tirx.Cast(wide, node.value))
        return node.value if kind == source else node

    return _mapped(module, (TensorLoad, load), (tirx.Cast, cast), (tirx.BufferStore, store))


def helpers(source: str) -> str:
    """The functions of ours that the program calls."""
    used = {int(lanes or 1) for lanes in re.findall(rf"\b{_ROUND}(\d*)\(", source)}
    return "".join(_rounding("" if lanes == 1 else str(lanes)) for lanes in sorted(used))


def _rounding(lanes: str) -> str:
    """A float32 rounded to the nearest float16."""
    return (
        f"float{lanes} {_ROUND}{lanes}(float{lanes} x) {{\n"
        f"  ushort{lanes} bits;\n"
        f"  vstore_half{lanes}_rte(x, 0, (half*)&bits);\n"
        f"  return vload_half{lanes}(0, (half*)&bits);\n"
        "}\n"
    )


def opencl_literals(module: tvm.IRModule) -> tvm.IRModule:
    """The least integers as differences, floats that would lose digits as bits; last, since TVM would compute them.

    And C's names that lowering brings in.
    """

    def function(node: Call) -> tirx.Expr:
        if not str(getattr(node.op, "name", "")).endswith("call_pure_extern"):
            return node
        name = str(node.args[0].value).removesuffix("f")
        known = _FUNCTIONS.get(name)
        return node if known is None else tirx.call_pure_extern(str(node.expr_ty()), known, *node.args[1:])

    def literal(node: tirx.IntImm) -> tirx.Expr:
        dtype = str(node.expr_ty())
        if int(node.value) != _LEAST.get(dtype):
            return node
        return tirx.Sub(tirx.const(int(node.value) + 1, dtype), tirx.const(1, dtype))

    return _mapped(module, (tirx.IntImm, literal), (tirx.FloatImm, _exact), (Call, function))


def _exact(node: tirx.FloatImm) -> tirx.Expr:
    """A float as it is, or its bits where TVM would write another number."""
    dtype = str(node.expr_ty())
    if dtype not in _BITS:
        return node
    bits, function = _BITS[dtype]
    value = np.array(node.value, dtype)
    if not np.isfinite(value) or np.array(f"{value:.6e}", dtype) == value:
        return node
    return tirx.call_pure_extern(dtype, function, tirx.const(int(value.view(bits)), bits))


def _mapped(module: tvm.IRModule, *rules: tuple[type, object]) -> tvm.IRModule:
    functions = {
        var: _with_body(function, tvm_ffi.structural_map(function.body, list(rules)))
        for var, function in module.functions.items()
    }
    return tvm.IRModule(functions, attrs=module.attrs)


def _with_body(function: tirx.PrimFunc, body: tirx.Stmt) -> tirx.PrimFunc:
    changed = tirx.PrimFunc(function.params, body, function.ret_type)
    for key, value in (function.attrs or {}).items():
        changed = changed.with_attr(key, value)
    return changed
