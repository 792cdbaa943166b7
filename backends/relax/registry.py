"""The table of emitters: which function expresses which ONNX operator in Relax.

An emitter is a function `(ctx, node) -> Result | Sequence[Result]`, registered for one or more operators of one
domain::

    @emits("Relu")
    def relu(ctx: Emitter, node: ir.Node) -> Result:
        return ctx.elementwise([node.inputs[0]], relax.op.nn.relu)

It returns one result for each output of the node (a single result stands for a list of one; `None` for an output that
is not used).
What it cannot express it refuses with `Refused("why")`; the node then runs in the fallback partition.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import onnx_ir as ir

from backends.relax.values import Result

if TYPE_CHECKING:
    from backends.relax.emitter import Emitter

EmitFunction = Callable[["Emitter", ir.Node], Result | Sequence[Result | None]]

_EMITTERS: dict[tuple[str, str], EmitFunction] = {}


def emits(*op_types: str, domain: str = "") -> Callable[[EmitFunction], EmitFunction]:
    """Register an emitter for operators of one domain (`""` is ONNX's own)."""

    def register(function: EmitFunction) -> EmitFunction:
        for op_type in op_types:
            key = (domain, op_type)
            if key in _EMITTERS:
                raise ValueError(f"two emitters for {key}: {_EMITTERS[key].__name__} and {function.__name__}")
            _EMITTERS[key] = function
        return function

    return register


@cache
def emitters() -> dict[tuple[str, str], EmitFunction]:
    """The whole table; the modules of `backends.relax.ops` are imported on first use."""
    package = importlib.import_module("backends.relax.ops")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"backends.relax.ops.{module.name}")
    return _EMITTERS


def operator_names() -> tuple[str, ...]:
    """The operators of the table, in order; those of another domain than ONNX's own with it in front."""
    return tuple(sorted(f"{domain}.{name}" if domain else name for domain, name in emitters()))
