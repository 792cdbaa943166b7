"""The walk over a model that applies the adapters."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from onnx import defs

from optimizer.errors import ModelError, UnsupportedError
from optimizer.frontends.opset.adapters import ADAPTERS
from optimizer.frontends.opset.rewrite import Rewrite
from optimizer.ir.walk import nested_graphs

__all__ = ["CANONICAL_OPSET", "NEWEST_OPSET", "OLDEST_OPSET", "to_canonical_opset"]

OLDEST_OPSET = 7
CANONICAL_OPSET = 23
NEWEST_OPSET = 28
_IR_VERSION = 10
"""The first IR version with everything that opset 23 needs; older models are lifted to it."""


def to_canonical_opset(model: ir.Model) -> None:
    """Rewrite every node of an opset below the canonical one; models above it stay as they are.

    A model older than `OLDEST_OPSET` is read as far as its operators are still those of that opset.

    Raises:
        ModelError: The model does not say which opset it uses.
        UnsupportedError: The opset is older or newer than what can be read, or a node has no equal in the canonical
            opset.
    """
    changed = _convert(model.graph, model.opset_imports)
    for function in model.functions.values():
        changed = _convert(function.graph, function.opset_imports) or changed
    model.ir_version = max(model.ir_version, _IR_VERSION)
    if changed:
        common_passes.NameFixPass()(model)


def default_opset(imports: dict[str, int]) -> int | None:
    """The default domain's version; `None` when only other domains are used."""
    versions = {imports[domain] for domain in ("", "ai.onnx") if domain in imports}
    if len(versions) > 1:
        raise ModelError(f"the model imports the default opset twice, as versions {sorted(versions)}: keep one")
    return versions.pop() if versions else None


def _convert(graph: ir.Graph, imports: dict[str, int]) -> bool:
    version = default_opset(imports)
    imports.pop("ai.onnx", None)
    if version is None:
        version = CANONICAL_OPSET
    elif not 1 <= version <= NEWEST_OPSET:
        raise UnsupportedError(
            f"the model uses opset {version}; opsets {OLDEST_OPSET} to {NEWEST_OPSET} can be read: "
            "export it again with one of these"
        )
    imports[""] = max(version, CANONICAL_OPSET)
    if version >= CANONICAL_OPSET:
        return False
    nodes = [node for nested in nested_graphs(graph) for node in nested]
    adapted = [_adapt(node, version) for node in nodes]
    return any(adapted)


def _adapt(node: ir.Node, version: int) -> bool:
    if node.domain != "":
        return False
    changed = False
    if version < OLDEST_OPSET and not _unchanged_since(node.op_type, version):
        raise UnsupportedError(
            f"{node.op_type} of opset {version} cannot be read: export the model again with opset {OLDEST_OPSET} or "
            "later",
            node=node.name or "",
        )
    for below, adapter in ADAPTERS.get(node.op_type, ()):
        if version < below:
            adapter(Rewrite(node, version))
            changed = True
    return changed


def _unchanged_since(op_type: str, version: int) -> bool:
    """Whether the operator at `version` is still the one of the oldest opset that is read."""
    try:
        return bool(
            defs.get_schema(op_type, version, "").since_version
            == defs.get_schema(op_type, OLDEST_OPSET, "").since_version
        )
    except defs.SchemaError:
        return False
