"""The digest of what PyTorch brings: modules with their weights, exported programs, and the flags of an export."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from optimizer.cache.digest import Digest, Undigestable
from optimizer.cache.objects import ObjectWalk
from optimizer.cache.patches import replaced_in

__all__ = ["add_examples", "add_torch"]

_TENSORS = (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
_NAMED = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_KNOWN_OPERATORS = ("aten", "prims", "higher_order", "torchvision")
_ENVIRONMENT = ("TORCH_", "TORCHDYNAMO_", "PYTORCH_", "TRANSFORMERS_")
_HOOKS = (
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
    "_global_buffer_registration_hooks",
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_module_registration_hooks",
    "_global_parameter_registration_hooks",
)


def add_torch(digest: Digest, walk: ObjectWalk, model: torch.nn.Module | torch.export.ExportedProgram) -> None:
    """Add a module or an exported program.

    Raises:
        Undigestable: Something in it, or a mode that is active, cannot be told.
    """
    walk.handlers.append(_Values())
    digest.add("torch", torch.__version__, str(torch.version.git_version))
    _add_flags(digest, walk)
    if isinstance(model, torch.export.ExportedProgram):
        _add_program(digest, walk, model)
        return
    walk.add(model, "model")
    walk.packages.add("torch")
    for name, value in replaced_in(walk.packages):
        digest.add("replaced", name)
        walk.add(value, name)


def add_examples(digest: Digest, walk: ObjectWalk, examples: object) -> None:
    """Add the types and sizes of tensors among example inputs, and the values of all else."""
    walk.handlers.insert(0, _visit_size)
    digest.add("examples")
    walk.add(examples, "example_inputs")
    walk.handlers.remove(_visit_size)


class _Values:
    """A handler for the types of PyTorch; it knows which tensors share their memory."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}

    def __call__(self, walk: ObjectWalk, value: Any, where: str) -> bool:
        if isinstance(value, torch.Tensor):
            self._add_tensor(walk, value, where)
        elif isinstance(value, _NAMED):
            walk.digest.add(repr(value))
        elif isinstance(value, torch.Size):
            walk.digest.add("size", *value)
        elif isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            _check_operator(value, where)
            walk.digest.add("operator", str(value))
        elif isinstance(value, torch._ops._OpNamespace):
            _check_operator(value.name, where)
            walk.digest.add("operators", value.name)
        elif isinstance(value, torch.jit.ScriptModule):
            raise Undigestable(f"{where} is a TorchScript module")
        else:
            return False
        return True

    def _add_tensor(self, walk: ObjectWalk, tensor: torch.Tensor, where: str) -> None:
        if type(tensor) not in _TENSORS:
            raise Undigestable(f"{where} is a {type(tensor).__qualname__}")
        _add_form(walk.digest, tensor, where)
        storage = tensor.untyped_storage().data_ptr()
        walk.digest.add(self._storages.setdefault(storage, len(self._storages)), int(tensor.storage_offset()))
        data = tensor.detach().resolve_conj().resolve_neg().contiguous()
        if data.numel():
            walk.digest.add_bytes(data.view(-1).view(torch.uint8).numpy().data)
        for name, value in sorted(vars(tensor).items()):
            walk.digest.add(name)
            walk.visit(value, f"{where}.{name}")


def _visit_size(walk: ObjectWalk, value: Any, where: str) -> bool:
    if type(value) in _TENSORS:
        _add_form(walk.digest, value, where)
    elif type(value) is np.ndarray:
        walk.digest.add("array", str(value.dtype), *value.shape)
    else:
        return False
    return True


def _add_form(digest: Digest, tensor: torch.Tensor, where: str) -> None:
    """All of a tensor but its elements."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise Undigestable(f"{where} is no plain tensor in memory")
    facts = (
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.requires_grad,
        tensor.is_conj(),
        tensor.is_neg(),
    )
    digest.add(type(tensor).__name__, *map(str, facts))


def _check_operator(operator: Any, where: str) -> None:
    namespace = str(operator).partition(".")[0]
    if namespace not in _KNOWN_OPERATORS:
        raise Undigestable(f"{where} is the operator {operator}, whose code cannot be seen")


def _add_flags(digest: Digest, walk: ObjectWalk) -> None:
    """What is set for the whole process and changes what an export gives."""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
        raise Undigestable("a mode of PyTorch is active, which may change any operator")
    digest.add(
        str(torch.get_default_dtype()),
        str(torch.is_autocast_enabled("cpu")),
        str(torch.get_autocast_dtype("cpu")),
        str(torch.is_inference_mode_enabled()),
        str(torch.are_deterministic_algorithms_enabled()),
        str(torch.backends.mha.get_fastpath_enabled()),
        str([getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "math", "mem_efficient")]),
    )
    digest.add(*(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_ENVIRONMENT)))
    for name in ("torch._dynamo.config", "torch._functorch.config", "torch.fx.experimental._config"):
        config = sys.modules.get(name)  # one that nobody has loaded is as the environment makes it
        digest.add(name, *(() if config is None else _settings(config)))
    hooks = sys.modules["torch.nn.modules.module"]
    for name in _HOOKS:
        digest.add(name)
        walk.add(getattr(hooks, name), name)


def _settings(config: Any) -> list[str]:
    """The settings that differ from what the environment makes them."""
    unset = sys.modules["torch.utils._config_module"]._UNSET_SENTINEL
    changed = []
    for name, entry in sorted(config._config.items()):
        given = [v for v in (entry.env_value_force, entry.env_value_default) if v is not unset]
        default = given[0] if given else entry.default
        if entry.alias is None and not entry.deprecated and getattr(config, name) != default:
            changed.append(f"{name}={getattr(config, name)!r}")
    return changed


def _add_program(digest: Digest, walk: ObjectWalk, program: torch.export.ExportedProgram) -> None:
    """Add a program: each node of its graphs with types and scopes, its signature, and its tensors."""
    for name, module in program.graph_module.named_modules():
        if isinstance(module, torch.fx.GraphModule):
            digest.add("graph", name)
            for node in module.graph.nodes:
                _add_node(digest, node)
    digest.add(repr(program.graph_signature), repr(program.range_constraints), repr(program.call_spec))
    walk.add(program.example_inputs is not None, "example_inputs")
    for kind, held in (("state", program.state_dict), ("constants", program.constants)):
        digest.add(kind)
        walk.add(dict(held), f"the program's {kind}")
    if program.example_inputs is not None:
        add_examples(digest, walk, program.example_inputs)


def _add_node(digest: Digest, node: torch.fx.Node) -> None:
    if node.op == "call_function" and isinstance(node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        _check_operator(node.target, node.name)
    elif isinstance(node.target, types.FunctionType):
        raise Undigestable(f"the node {node.name} calls the function {node.target.__qualname__}")
    digest.add(node.op, node.name, str(node.target), repr(node.args), repr(node.kwargs))
    digest.add(repr(list(_types(node.meta.get("val")))), repr(node.meta.get("nn_module_stack")))


def _types(value: Any) -> Iterator[str]:
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.stride()}"
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _types(item)
    else:
        yield repr(value)
