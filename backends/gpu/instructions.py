"""From a planned module to a program: the calls of each function as starts of device functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.ir import Call, GenericConst, GlobalVar, Op

from backends.gpu.device import DeviceCode, Start
from backends.gpu.procedures import DEMANDS
from backends.gpu.program import Buffer, Constant, Instruction, Place, Program, Routine, Tensor
from backends.relax.packing import element_type
from backends.relax.size_formula import formula
from backends.relax.size_value import Formula

__all__ = ["program_of"]

_ALLOC = Op.get("relax.builtin.alloc_tensor")
_RESHAPE = Op.get("relax.reshape")

Known = Place | list["Known"]
"""Where a value lies, or where each field of a tuple does."""


def program_of(
    module: tvm.IRModule, generate: Callable[[Mapping[str, tirx.PrimFunc]], DeviceCode]
) -> tuple[Program, str]:
    """The program and its source.

    Args:
        module: functions whose memory is planned (`backends.relax.memory_plan`), and their scheduled kernels.
        generate: makes the code of scheduled kernels, by name.

    Raises:
        CodeError: a kernel is beyond the device's language.
        RuntimeError: a function does what a device's queue cannot.
    """
    functions = {v.name_hint: f for v, f in module.functions.items() if isinstance(f, relax.Function)}
    called = {
        binding.value.op.name_hint: module[binding.value.op]
        for function in functions.values()
        for binding in _bindings(function)
        if isinstance(binding.value, Call) and isinstance(binding.value.op, GlobalVar)
    }
    code = generate(called)
    constants: list[Constant] = []
    routines = {name: _Writer(f, called, code, constants).routine() for name, f in functions.items()}
    starts = [start for each in code.starts.values() for start in each]
    return (
        Program(
            routines,
            constants,
            shared_bytes=max((s.shared_bytes for s in starts), default=0),
            threads=max((prod(s.block) for s in starts), default=1),
            extensions=code.extensions,
        ),
        code.source,
    )


def _bindings(function: relax.Function) -> list[relax.VarBinding]:
    return [binding for block in function.body.blocks for binding in block.bindings]


@dataclass
class _Writer:
    """Goes through one function."""

    function: relax.Function
    kernels: Mapping[str, tirx.PrimFunc]
    code: DeviceCode
    constants: list[Constant]
    places: dict[relax.Var, Known] = field(default_factory=dict)
    own: list[Buffer] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)

    def routine(self) -> Routine:
        """The instructions, and where the results lie."""
        self._parameters()
        for binding in _bindings(self.function):
            value = binding.value
            if isinstance(value, Call) and isinstance(value.op, GlobalVar):
                self._call(value)
            else:
                self.places[binding.var] = self._place(value)
        body = self.function.body.body
        fields = list(zip(self._place(body), body.ty.fields, strict=True))
        return Routine(self.instructions, [self._tensor(place, ty) for place, ty in fields], self.own)

    def _parameters(self) -> None:
        """Tensors, sizes, and two tuples: of weights and of memory."""
        inputs = 0
        *params, memory = self.function.params
        for parameter in params:
            if isinstance(parameter.ty, relax.TensorType):
                self.places[parameter] = ["input", inputs]
                inputs += 1
            elif isinstance(parameter.ty, relax.TupleType):
                self.places[parameter] = [["weight", i] for i in range(len(parameter.ty.fields))]
        self.places[memory] = [["memory", i] for i in range(len(memory.ty.fields))]

    def _place(self, value: relax.Expr) -> Known:
        if isinstance(value, relax.Var):
            return self.places[value]
        if isinstance(value, relax.Tuple):
            return [self._place(each) for each in value.fields]
        if isinstance(value, relax.TupleGetItem):
            found: Known = self._place(value.tuple_value)[int(value.index)]
            return found
        if isinstance(value, GenericConst):
            self.constants.append(Constant(value.value.numpy().tobytes().hex()))
            return ["constant", len(self.constants) - 1]
        if isinstance(value, Call) and value.op == _ALLOC:
            self.own.append(Buffer(_bytes(value.ty)))
            return ["own", len(self.own) - 1]
        if isinstance(value, Call) and value.op == _RESHAPE:
            return self._place(value.args[0])
        raise RuntimeError(f"a function for a device does {str(value)[:200]}")

    def _tensor(self, place: Place, ty: relax.TensorType) -> Tensor:
        return Tensor(place, [formula(dim) for dim in ty.shape.values], str(ty.dtype))

    def _call(self, call: Call) -> None:
        name = call.op.name_hint
        kernel, arguments = self.kernels[name], list(call.args)
        sizes = _Sizes()
        for parameter, argument in zip(kernel.params, arguments, strict=True):
            sizes.bind(parameter, argument)
        places = [None if tvm.ir.is_prim_expr(argument) else self._place(argument) for argument in arguments]
        starts = self.code.starts[name]
        for number, start in enumerate(starts):
            first, last = number == 0, number == len(starts) - 1
            scratch = [sizes.over(size) for size in self.code.scratch[name]] if first else []
            demands = [str(text) for text in (kernel.attrs or {}).get(DEMANDS, [])] if last else []
            self.instructions.append(
                Instruction(
                    name,
                    start.entry,
                    self._arguments(start, places, sizes),
                    [sizes.over(extent) for extent in start.grid],
                    list(start.block),
                    scratch,
                    demands,
                )
            )

    def _arguments(self, start: Start, places: Sequence[Known | None], sizes: _Sizes) -> list[list[Any]]:
        result: list[list[Any]] = []
        for parameter in start.parameters:
            if parameter.size is not None:
                result.append([sizes.over(parameter.size), parameter.dtype])
            elif parameter.faults:
                result.append([["faults", 0], 4])
            elif parameter.scratch >= 0:
                result.append([["scratch", parameter.scratch], element_type(parameter.dtype).itemsize])
            else:
                result.append([places[parameter.position], element_type(parameter.dtype).itemsize])
        return result


class _Sizes:
    """What a kernel's own symbolic sizes are at one call, over those of the function."""

    def __init__(self) -> None:
        self._values: dict[str, Formula] = {}

    def bind(self, parameter: tirx.Var, argument: relax.Expr) -> None:
        """Learn from a parameter and what is passed for it."""
        if tvm.ir.is_prim_expr(argument):
            self._learn(parameter, argument)
            return
        for own, given in zip(parameter.shape, argument.ty.shape.values, strict=True):
            self._learn(own, given)
        if isinstance(offset := parameter.ty.elem_offset, tirx.Var):  # of a buffer that need not begin its memory
            self._values[str(offset.name)] = 0

    def _learn(self, own: tirx.Expr, given: tirx.Expr) -> None:
        if not isinstance(own, tirx.Var):
            return
        value = formula(given)
        if self._values.setdefault(str(own.name), value) != value:
            raise RuntimeError(f"the sizes {own.name} of a kernel are not all the same: {value}")

    def over(self, size: Formula) -> Formula:
        """A formula over the kernel's sizes as one over the function's."""
        if isinstance(size, int):
            return size
        if isinstance(size, str):
            return self._values[size]
        return [size[0], *(self.over(part) for part in size[1:])]


def _bytes(ty: relax.TensorType) -> Formula:
    size: Formula = element_type(str(ty.dtype)).itemsize
    for dim in ty.shape.values:
        extent = formula(dim)
        size = size * extent if isinstance(size, int) and isinstance(extent, int) else ["*", size, extent]
    return size
