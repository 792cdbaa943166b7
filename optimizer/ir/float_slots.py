"""Which inputs and outputs of an operator can be bfloat16 or float16 in place of float32, by its definition in ONNX.

* `OWN`: they change together, as one type of the node.
* `FREE`: such an input may have either type, whatever the node's own is.
* `FIXED`: float32 only, or a type that something else than the node's float inputs decides.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

__all__ = ["Slot", "input_slots", "output_slots"]


class Slot(enum.Enum):
    """What holds for an input or output; see the module's docstring."""

    OWN = enum.auto()
    FREE = enum.auto()
    FIXED = enum.auto()


_FREE_INPUTS = {
    "Attention": {3},  # a mask is added to scores, which are float32 anyway
    "BatchNormalization": {1, 2, 3, 4},
    "Cast": {0},
    "CastLike": {0},
    "Dropout": {1},
    "Pow": {1},
}
_FIXED_OUTPUTS = {"LayerNormalization": {1, 2}}
"""Their type is said by `stash_type`."""
_SAID_BY_ATTRIBUTE = frozenset({"Cast", "ConstantOfShape"})
"""No input decides the type of what they give; the attribute that does can be changed."""

_Attributes = onnx.defs.OpSchema.AttrType


@dataclass(frozen=True)
class _Form:
    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]


def input_slots(node: ir.Node, opset: int, narrow: str) -> Iterator[tuple[ir.Value | None, Slot]]:
    """The inputs of a node, and what holds for each; `narrow` is `NarrowFloat.onnx` of the type in question."""
    slots = _form(node, opset, narrow).inputs
    for index, value in enumerate(node.inputs):
        yield value, slots[min(index, len(slots) - 1)]


def output_slots(node: ir.Node, opset: int, narrow: str) -> Iterator[tuple[ir.Value, Slot]]:
    """The outputs of a node, and what holds for each; see `input_slots`."""
    slots = _form(node, opset, narrow).outputs
    for index, value in enumerate(node.outputs):
        yield value, slots[min(index, len(slots) - 1)]


def _form(node: ir.Node, opset: int, narrow: str) -> _Form:
    """What holds for the parameters; the last one's holds for all that follow it."""
    return _standard_form(node.op_type, opset, narrow) if node.domain == "" else _FIXED_FORM


_FIXED_FORM = _Form((Slot.FIXED,), (Slot.FIXED,))


@functools.cache
def _standard_form(op_type: str, opset: int, narrow: str) -> _Form:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return _FIXED_FORM
    allowed = {each.type_param_str: set(each.allowed_type_strs) for each in schema.type_constraints}
    if op_type != "Identity" and not all(map(_is_tensor, set().union(*allowed.values()))):
        return _FIXED_FORM  # sequences and optionals, whose elements have a type elsewhere
    if "dtype" in schema.attributes or any(_is_graph(each) for each in schema.attributes.values()):
        return _FIXED_FORM
    convertible = {name for name, types in allowed.items() if types >= {"tensor(float)", narrow}}
    decided = {parameter.type_str for parameter in schema.inputs}
    free, fixed = _FREE_INPUTS.get(op_type, ()), _FIXED_OUTPUTS.get(op_type, ())

    def of_input(index: int, name: str) -> Slot:
        if name not in convertible:
            return Slot.FIXED
        return Slot.FREE if index in free else Slot.OWN

    def of_output(index: int, name: str) -> Slot:
        known = name in decided or op_type in _SAID_BY_ATTRIBUTE
        return Slot.OWN if name in convertible and known and index not in fixed else Slot.FIXED

    return _Form(
        tuple(of_input(i, parameter.type_str) for i, parameter in enumerate(schema.inputs)) or (Slot.FIXED,),
        tuple(of_output(i, parameter.type_str) for i, parameter in enumerate(schema.outputs)) or (Slot.FIXED,),
    )


def _is_tensor(kind: str) -> bool:
    return kind.startswith("tensor(")


def _is_graph(attribute: onnx.defs.OpSchema.Attribute) -> bool:
    return attribute.type in (_Attributes.GRAPH, _Attributes.GRAPHS)
