"""A program of PyTorch made ready for its ONNX exporter without tracing it a second time.

`torch.onnx.export` calls `run_decompositions`, which traces the whole program again, for the few operators that ONNX's
translation lacks: a second of the three that MobileNetV2 takes to export. In the graph of a network at inference these
are few and plain, so they are rewritten here, one node at a time:

1. a dropout, and a `to` that changes no type                -> its input
2. a `to` of another type                                    -> `_to_copy`
3. an operator in place, on a value that nothing else reads  -> the same operator with a result of its own
4. `batch_norm` by the statistics of the module              -> `_native_batch_norm_legit_no_training`
5. `adaptive_avg_pool2d` to one pixel                        -> the mean over both axes
6. `__and__` of tensors                                      -> `bitwise_and`

Each is what PyTorch's own decomposition gives. A program with anything else in it is left to that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.fx import Node

__all__ = ["exported_once"]

_WHOLE = frozenset(
    {
        "aten::contiguous",
        "aten::conv1d",
        "aten::conv2d",
        "aten::expand_as",
        "aten::flatten.using_ints",
        "aten::layer_norm",
        "aten::linear",
        "aten::matmul",
        "aten::max_pool2d",
        "aten::pad",
        "aten::relu6",
        "aten::reshape",
        "aten::scaled_dot_product_attention",
    }
)
"""Operators that PyTorch composes of others, and that the exporter translates as they are."""

_FRESH = frozenset({"aten::batch_norm", "aten::conv1d", "aten::conv2d", "aten::linear", "aten::matmul"})
"""Composed operators whose result is never a view, nor the input itself; of others the signature tells."""

_DROPOUTS = frozenset({"aten::dropout", "aten::dropout_"})


def exported_once(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.export.ExportedProgram:
    """A module as a program that decomposes itself without being traced again, as far as the rules above go.

    Args:
        module: In eval mode.
        args: Its positional arguments, for static shapes.
        kwargs: The others.

    Raises:
        Exception: Whatever `torch.export.export` raises.
    """
    import torch

    program = torch.export.export(module, args, kwargs=kwargs, strict=False)
    _rewrite(program.graph_module)
    decompose = program.run_decompositions

    def run_decompositions(table: dict[Any, Any]) -> torch.export.ExportedProgram:
        return program if all(_is_ready(node, table) for node in program.graph.nodes) else decompose(table)

    program.run_decompositions = run_decompositions
    return program


def _rewrite(module: torch.fx.GraphModule) -> None:
    import torch

    for rules in ((_in_place,), (_without_effect, _batch_norm, _mean_of_an_image, _bitwise_and)):
        for node in list(module.graph.nodes):
            if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
                any(rule(node, _name(node.target)) for rule in rules)
    module.graph.lint()
    module.recompile()


def _name(target: torch._ops.OpOverload) -> str:
    schema = target._schema
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name


def _is_ready(node: Node, table: Container[object]) -> bool:
    """Whether the exporter translates a node as it is; `table`: the operators that it wants decomposed."""
    import torch

    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    target = node.target
    if target is operator.getitem:
        return True
    if not isinstance(target, torch._ops.OpOverload) or target in table:
        return False
    name = _name(target)
    if name == "aten::_assert_tensor_metadata":
        return True  # the exporter leaves it out
    return not target._schema.is_mutable and (not target._can_decompose() or name in _WHOLE)


def _without_effect(node: Node, name: str) -> bool:
    """Cases 1 and 2."""
    import torch

    source = node.args[0] if node.args else None
    if name in _DROPOUTS and node.args[2:] == (False,):
        return _replace(node, source)
    if not name.startswith("aten::to.") or True in node.args[1:] or node.kwargs.get("copy"):
        return False  # of a copy, the source must stay as it is
    wanted = node.meta["val"].dtype
    if source.meta["val"].dtype == wanted:  # type: ignore[union-attr]
        return _replace(node, source)
    return _replace(node, _call(node, torch.ops.aten._to_copy.default, (source,), dtype=wanted))


def _in_place(node: Node, name: str) -> bool:
    """Case 3; the other operator may give another type than that of what is overwritten, as a comparison does."""
    import torch
    from torch.fx.node import map_arg

    packet, _, overload = name.removeprefix("aten::").partition(".")
    if not name.startswith("aten::") or not packet.endswith("_") or packet.endswith("__"):
        return False
    pure = getattr(getattr(torch.ops.aten, packet[:-1], None), overload or "default", None)
    if pure is None or not node.args or not _is_fresh(node.args[0], node):
        return False
    if [a.name for a in pure._schema.arguments] != [a.name for a in node.target._schema.arguments]:  # type: ignore[union-attr]
        return False
    arguments, options = map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    wanted, found = node.meta["val"], pure(*arguments, **options)  # of tensors without data
    if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
        return False
    node.target = pure
    return True


def _is_fresh(value: Any, reader: Node) -> bool:
    """Whether a value lies in memory of its own that `reader` alone reads."""
    import torch

    target = getattr(value, "target", None)
    if not isinstance(target, torch._ops.OpOverload) or set(value.users) != {reader}:
        return False
    composed = target._can_decompose() and _name(target) not in _FRESH
    return not composed and all(result.alias_info is None for result in target._schema.returns)


def _batch_norm(node: Node, name: str) -> bool:
    """Case 4."""
    import torch

    if name != "aten::batch_norm" or len(node.args) != 9 or node.kwargs:
        return False
    source, weight, bias, mean, variance, training, momentum, epsilon, _ = node.args
    if training or mean is None or variance is None:
        return False
    arguments = source, weight, bias, mean, variance, momentum, epsilon
    normalized = _call(node, torch.ops.aten._native_batch_norm_legit_no_training.default, arguments)
    value = node.meta["val"]
    normalized.meta["val"] = (value, value.new_empty(0), value.new_empty(0))
    with node.graph.inserting_after(normalized):
        first = node.graph.call_function(operator.getitem, (normalized, 0))
    first.meta = dict(node.meta)
    return _replace(node, first)


def _mean_of_an_image(node: Node, name: str) -> bool:
    """Case 5."""
    import torch

    if name != "aten::adaptive_avg_pool2d" or list(node.args[1]) != [1, 1]:  # type: ignore[arg-type]
        return False
    return _replace(node, _call(node, torch.ops.aten.mean.dim, (node.args[0], [-1, -2], True)))


def _bitwise_and(node: Node, name: str) -> bool:
    """Case 6."""
    import torch

    if name != "aten::__and__.Tensor":
        return False
    node.target = torch.ops.aten.bitwise_and.Tensor
    return True


def _call(node: Node, target: Callable[..., Any], arguments: tuple[Any, ...], **options: Any) -> Node:
    """A new node in front of one whose type and place in the module it takes over."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, arguments, options)
    new.meta = dict(node.meta)
    return new


def _replace(node: Node, new: Any) -> bool:
    """Let all that read a node read another; not if it is an output, which the program's signature names."""
    if any(user.op == "output" for user in node.users):
        return False
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return True
