"""A `torch.nn.Module` or `torch.export.ExportedProgram` becomes an `onnx_ir.Model` through PyTorch's own exporter.

The exporter's optimizer is left out: our passes do that work, and the weights stay the module's own memory.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import onnx_ir as ir

from optimizer.errors import InputError, UnsupportedError
from optimizer.frontends.attention_forms import attention_forms
from optimizer.frontends.expert_products import expert_products
from optimizer.frontends.one_trace import exported_once
from optimizer.frontends.single_sizes import Arguments, examples
from optimizer.frontends.translations import parsed_when_needed
from optimizer.memory import collector_paused

if TYPE_CHECKING:
    import torch

__all__ = ["from_torch", "is_torch_model"]

OPSET = 23
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
_KEPT_METADATA = "namespace"
_FAILURES = (RuntimeError, TypeError, ValueError, AssertionError, AttributeError, LookupError)
"""What PyTorch's exporter raises beside its own errors."""


def is_torch_model(model: object) -> TypeGuard[torch.nn.Module | torch.export.ExportedProgram]:
    """Whether `model` is a module or an exported program of PyTorch; never imports it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    program = getattr(sys.modules.get("torch.export"), "ExportedProgram", None)
    return isinstance(model, torch.nn.Module) or (program is not None and isinstance(model, program))


def from_torch(
    model: torch.nn.Module | torch.export.ExportedProgram, example_inputs: object, dynamic_shapes: object
) -> ir.Model:
    """Export a PyTorch model; its weights are shared, its training mode is put back.

    Args:
        model: A module, or a program exported with `torch.export.export`.
        example_inputs: What the module is called with: a tensor, a tuple of positional arguments, or a dict of keyword
            arguments. Not needed for an exported program.
        dynamic_shapes: As in `torch.export.export`.

    Raises:
        InputError: A module was given without `example_inputs`.
        UnsupportedError: PyTorch cannot export the model.
    """
    import torch

    is_program = isinstance(model, torch.export.ExportedProgram)
    if is_program and dynamic_shapes is not None:
        raise InputError("dynamic_shapes is fixed when a program is exported: give it to torch.export.export")
    if not is_program and example_inputs is None:
        raise InputError(
            "a torch.nn.Module needs example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments"
        )
    args, kwargs = ((), {}) if is_program else _arguments(example_inputs)
    with _quiet(), _eval_mode(model), torch.no_grad(), collector_paused():
        for example in examples(model, args, kwargs, dynamic_shapes):
            exported = _exported_once(model, example, dynamic_shapes) or _exported(model, example, dynamic_shapes)
            if not isinstance(exported, Exception):
                break
        if isinstance(exported, Exception):
            raise UnsupportedError(f"PyTorch cannot export this model to ONNX: {_reason(exported)}") from exported
        if exported is None:
            raise UnsupportedError("PyTorch exported nothing for this model: give a torch.nn.Module, not a script")
        return _own(exported.model)


def _exported_once(model: Any, example: Arguments, dynamic_shapes: Any) -> torch.onnx.ONNXProgram | None:
    """What the exporter makes of a module traced once, if it can; `None` if anything about it fails."""
    import torch

    if dynamic_shapes is not None or not isinstance(model, torch.nn.Module):
        return None
    try:
        program = exported_once(model, *example)
    except _FAILURES:
        return None
    exported = _exported(program, ((), {}), None)
    return None if isinstance(exported, Exception) else exported


def _exported(model: Any, example: Arguments, dynamic_shapes: Any) -> torch.onnx.ONNXProgram | Exception | None:
    """What PyTorch's exporter makes of a module and an example, or why it makes nothing."""
    import torch

    args, kwargs = example
    try:
        with parsed_when_needed():
            return torch.onnx.export(
                model,
                args,
                kwargs=kwargs,
                dynamic_shapes=dynamic_shapes,
                dynamo=True,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
                custom_translation_table={**attention_forms(), **expert_products()},
            )
    except (torch.onnx.OnnxExporterError, *_FAILURES) as error:
        return error


def _arguments(example_inputs: object) -> Arguments:
    if isinstance(example_inputs, Mapping):
        return (), {str(name): _tensor(value) for name, value in example_inputs.items()}
    if isinstance(example_inputs, (tuple, list)):
        return tuple(_tensor(value) for value in example_inputs), {}
    return (_tensor(example_inputs),), {}


def _tensor(value: Any) -> Any:
    import torch

    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings and no log lines of the exporter while it runs."""
    levels = {name: logging.getLogger(name).level for name in _NOISY_LOGGERS}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _eval_mode(model: torch.nn.Module | torch.export.ExportedProgram) -> Iterator[None]:
    """Put a module into eval mode, and each of its submodules back into its own mode afterwards."""
    import torch

    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _reason(error: BaseException) -> str:
    """The first line that says something, from the innermost error on."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _own(model: ir.Model) -> ir.Model:
    """Copy the structure, keep the weights' memory, drop what tells of the exporting machine (paths of its files)."""
    copied = model.clone()
    for value in copied.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and type(tensor) is not ir.Tensor:
            value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=value.name)
    for node in ir.traversal.RecursiveGraphIterator(copied.graph):
        for key in [key for key in node.metadata_props if key != _KEPT_METADATA]:
            del node.metadata_props[key]
        for output in node.outputs:
            output.metadata_props.clear()
    for value in copied.graph.inputs:
        value.metadata_props.clear()
    copied.graph.metadata_props.clear()
    return copied
