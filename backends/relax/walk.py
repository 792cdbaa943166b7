"""Emit the nodes of a segment: find the emitter of each, bind what it gives, and hold the types against the model's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir
import tvm

from backends.relax.attribution import label
from backends.relax.forms import dtype_name
from backends.relax.four_bits import unpacks
from backends.relax.registry import emitters
from backends.relax.values import Refused

if TYPE_CHECKING:
    from backends.relax.emitter import Emitter


def emit_nodes(
    ctx: Emitter,
    nodes: Sequence[ir.Node],
    on_refused: Callable[[ir.Node, str], None],
    *,
    defer: bool = True,
    refused: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Emit the nodes in order; a refused one is reported and its outputs become unknown.

    Args:
        ctx: the emitter.
        nodes: in topological order.
        on_refused: is told of a node and why.
        defer: whether nodes that unpack or turn weights wait until somebody reads their result as a tensor.
        refused: nodes, by name, that are refused whatever their emitters say, and why.
    """
    table = emitters()
    for position, node in enumerate(nodes):
        ctx.label = label(position)
        if defer and (unpacks(ctx, node) or _turns(ctx, node)):
            ctx.deferred[node.outputs[0]] = partial(_emit_now, ctx, node, table, ctx.label)
            continue
        try:
            if (node.name or "") in refused:
                raise Refused(refused[node.name or ""])
            emit_node(ctx, node, table)
        except Refused as refusal:
            on_refused(node, refusal.reason)


def _turns(ctx: Emitter, node: ir.Node) -> bool:
    """Whether a node puts the axes of an initializer in another order, as a packed copy of it may lie anyway."""
    return node.op_type == "Transpose" and node.domain in ("", "ai.onnx") and ctx.is_weight(node.inputs[0])


def _emit_now(ctx: Emitter, node: ir.Node, table: Mapping[tuple[str, str], Callable[..., object]], own: str) -> None:
    """Emit a node while another one is being emitted."""
    saved = ctx.label, ctx.kernel_name, ctx.node_name
    ctx.label = own
    emit_node(ctx, node, table)
    ctx.label, ctx.kernel_name, ctx.node_name = saved


def emit_node(ctx: Emitter, node: ir.Node, table: Mapping[tuple[str, str], Callable[..., object]]) -> None:
    """Emit a node with the emitter that the table has for it.

    Raises:
        Refused: there is none, or it cannot express the node.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    function = table.get((domain, node.op_type))
    if function is None:
        raise Refused(f"there is no emitter for {domain or 'ai.onnx'}::{node.op_type}")
    ctx.kernel_name, ctx.node_name = node.op_type.lower(), node.name or node.op_type
    try:
        results = function(ctx, node)
    except (tvm.error.InternalError, ValueError, TypeError) as error:
        raise Refused(f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:200]}") from error
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    for value, result in zip(node.outputs, results, strict=False):
        if result is not None and value.name:
            ctx.bind(value, result)
            _check(ctx, value)


def _check(ctx: Emitter, value: ir.Value) -> None:
    try:
        ctx.shape(value)
    except Refused:
        ctx.forget(value)
        raise
    if value.dtype is not None and ctx.dtype(value) != dtype_name(value.dtype):
        declared, found = dtype_name(value.dtype), ctx.dtype(value)
        ctx.forget(value)
        raise Refused(f"emitted {found} where the model declares {declared}")
