"""The modules that a node belongs to, from what exporters leave in its metadata or its name.

* `torch.onnx.export(dynamo=True)` writes `pkg.torch.onnx.name_scopes`: `['', 'bert', 'bert.encoder', 'add_1']`, each
  module with those around it, the node itself last.
* The older exporter and many converters write paths into the names: `/encoder/layer.0/attention/MatMul`.

The bodies of control flow are scopes of their own, and so are functions.
"""

from __future__ import annotations

import ast
from functools import lru_cache

import onnx_ir as ir

__all__ = ["Scope", "body_scope", "function_scope", "scope_of"]

Scope = tuple[str, ...]
"""Names of modules, outermost first, each without those around it."""

_NAME_SCOPES = "pkg.torch.onnx.name_scopes"
_LONGEST_NAME = 4096
_DEEPEST = 32
"""Modules in modules; what is deeper is shown in the module at this depth."""


def scope_of(node: ir.Node, around: Scope) -> Scope:
    """The modules around a node.

    Args:
        node: Any node.
        around: The scope of the graph that it stands in.
    """
    written = node.metadata_props.get(_NAME_SCOPES)
    inner = _from_metadata(written) if written else _from_name(node.name or "")
    shared = 0
    while shared < min(len(inner), len(around)) and inner[shared] == around[shared]:
        shared += 1
    return around + inner[shared:] if around else inner


def body_scope(scope: Scope, label: str, attribute: str) -> Scope:
    """The scope of a subgraph of a node."""
    return (*scope, f"{label}.{attribute}")


def function_scope(name: str) -> Scope:
    """The scope of the body of a function."""
    return (f"function {name}",)


@lru_cache(maxsize=4096)
def _from_metadata(text: str) -> Scope:
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return ()
    if not isinstance(names, list):
        return ()
    modules = [str(name) for name in names[:-1] if name][:_DEEPEST]
    around = ["", *modules][: len(modules)]
    return tuple(name.removeprefix(f"{outer}.") for outer, name in zip(around, modules, strict=True))


def _from_name(name: str) -> Scope:
    if "/" not in name or len(name) > _LONGEST_NAME:
        return ()
    return tuple(part for part in name.split("/")[:-1] if part)[:_DEEPEST]
