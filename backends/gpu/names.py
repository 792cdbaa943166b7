"""Names that are identifiers of C, CUDA and OpenCL: those of a model's values and sizes may be any text.

TVM's generators of code tell equal names apart, and write down what they are given otherwise. Pointers they call
`..._ptr`, which is no word of these languages; sizes become `..._extent`, which is none either.
"""

from __future__ import annotations

import re

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PrimType

__all__ = ["identifier", "with_identifiers"]

_THREADS = re.compile(r"(blockIdx|threadIdx)\.[xyz]")


def identifier(name: str) -> str:
    """The name with everything replaced that an identifier may not have.

    >>> identifier("/rnn/Shape.0"), identifier("n")
    ('v_rnn_Shape_0', 'n')
    """
    plain = re.sub(r"[^0-9A-Za-z_]", "_", name)
    return plain if re.match(r"[A-Za-z]", plain) else f"v{plain}"


def with_identifiers(module: tvm.IRModule) -> tvm.IRModule:
    """Device functions whose variables have such names.

    Args:
        module: functions that are split from the host's, which passes what they take by position.
    """
    functions = {var: _renamed(function) for var, function in module.functions.items()}
    return tvm.IRModule(functions, attrs=module.attrs)


def _renamed(function: tirx.PrimFunc) -> tirx.PrimFunc:
    sizes = [p for p in function.params if isinstance(p.ty, PrimType)]
    renamed = {p: tirx.Var(f"{identifier(str(p.name))}_extent", p.ty) for p in sizes}

    def variable(node: tirx.Var) -> tirx.Var:
        name = str(node.name)
        if node in renamed or _THREADS.fullmatch(name) or identifier(name) == name:
            return renamed.get(node, node)
        return renamed.setdefault(node, tirx.Var(identifier(name), node.ty))

    params = [variable(parameter) for parameter in function.params]
    body = tvm_ffi.structural_map(function.body, [(tirx.Var, variable)])
    done = tirx.PrimFunc(params, body, function.ret_type)
    for key, value in (function.attrs or {}).items():
        done = done.with_attr(key, value)
    return done
