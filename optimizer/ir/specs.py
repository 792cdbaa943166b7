"""The signature of a graph, as a compiled model shows it."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from optimizer.executable import TensorSpec

__all__ = ["dtype_name", "specs_of"]


def specs_of(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """The specifications of a graph's inputs or outputs."""
    return tuple(TensorSpec(value.name or "", dtype_name(value.type), _shape(value)) for value in values)


def dtype_name(type_: ir.TypeProtocol | None) -> str:
    """The numpy name of a tensor's element type; the ONNX type string of what is not a tensor; `""` if not known."""
    if isinstance(type_, (ir.SequenceType, ir.OptionalType)):
        kind = "seq" if isinstance(type_, ir.SequenceType) else "optional"
        return f"{kind}({_onnx_name(type_.elem_type)})"
    if type_ is None or type_.dtype == ir.DataType.UNDEFINED:
        return ""
    return "string" if type_.dtype == ir.DataType.STRING else str(type_.dtype.numpy().name)


def _onnx_name(type_: ir.TypeProtocol) -> str:
    if isinstance(type_, ir.TensorType):
        return f"tensor({type_.dtype.name.lower()})"
    return dtype_name(type_)


def _shape(value: ir.Value) -> tuple[int | str | None, ...] | None:
    if value.shape is None or not isinstance(value.type, ir.TensorType):
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
