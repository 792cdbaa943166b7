"""The memory of a compiled function: which tensors share which bytes of one arena.

The functions come as `CallTIRRewrite` leaves them, one call of a kernel after the other, each result allocated by
itself. They leave with the tensors as a parameter, a tuple, that the run fills in: a call allocates nothing but its
outputs.

1. A tensor lives from the call that writes it to the last one that reads it, or a view of it.
2. A result takes the place of an input that dies there, where `in_place` proves that the kernel may do that.
   What a kernel only copies is written or read where it belongs, and the kernel falls away (`aliases`).
3. What is returned, or has a size that is not known before the run, stays allocated by the virtual machine.
4. Inputs have a place, too, until they die: what is not aligned is copied there.

`arena` then gives offsets; for symbolic sizes the run does this.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import tvm
from tvm import relax, tirx
from tvm.ir import Call, GlobalVar, Op
from tvm.relax.expr import _update_type

from backends.relax.aliases import COPIES, Aliases, Life, find_aliases
from backends.relax.arena import REPAIRS, place
from backends.relax.in_place import Overwriting, reading_result
from backends.relax.memory import Buffer, Memory, Slot
from backends.relax.packing import element_type
from backends.relax.rest_of_join import Range, copying
from backends.relax.size_formula import formula
from backends.relax.size_value import Formula
from backends.relax.values import Refused, parts_of

__all__ = ["MemoryPlan", "plan_memory"]

_ALLOC = Op.get("relax.builtin.alloc_tensor")
_ALIASES_NOTHING = frozenset[relax.Var]()


def plan_memory(module: tvm.IRModule) -> MemoryPlan:
    """Plan every function of a module."""
    module = module.clone()
    functions = [(var, f) for var, f in module.functions.items() if isinstance(f, relax.Function)]
    planners = {var: _planned(function, module) for var, function in functions}
    copying_names = _copy_the_rest(module, list(planners.values()))
    kernels, names = _in_place_kernels(module, list(planners.values()))
    names |= copying_names
    for var, planner in planners.items():
        module.update_func(var, planner.rewritten(kernels))
    return MemoryPlan(module, {var.name_hint: planner.memory for var, planner in planners.items()}, names)


def _planned(function: relax.Function, module: tvm.IRModule) -> _Planner:
    """What is cut out of a tensor is a part of it, unless keeping the tensor for that makes the arena longer."""
    planner = _Planner(function, module)
    planner.plan()
    if planner.aliases.cuts:
        other = _Planner(function, module, cut=False)
        other.plan()
        return min(planner, other, key=lambda each: each.memory.bytes)
    return planner


@dataclass(frozen=True)
class MemoryPlan:
    """A module with its tensors in arenas.

    Attributes:
        module: what is left to lower.
        memories: what each function needs, by its name.
        names: of kernels that there are twice, as one call may write over an operand and another may not: the name of
            the second, and that of the first.
    """

    module: tvm.IRModule
    memories: dict[str, Memory]
    names: dict[str, str]

    @property
    def bytes(self) -> int:
        """Of all arenas whose sizes are known."""
        return sum(max(memory.bytes, 0) for memory in self.memories.values())


def _copy_the_rest(module: tvm.IRModule, planners: list[_Planner]) -> dict[str, str]:
    """Let joins copy only what is not in its place yet; the names of the kernels that do this, and of the joins."""
    made: dict[tuple[GlobalVar, tuple[Range, ...]], GlobalVar] = {}
    taken = {var.name_hint for var in module.functions}
    for planner in planners:
        for step, ranges in planner.aliases.rest.items():
            binding = planner.bindings[step]
            call = binding.value
            key = call.op, tuple(ranges)
            if key not in made:
                made[key] = GlobalVar(_free_name(call.op, taken, "rest"))
                module.update_func(made[key], copying(module[call.op], ranges, COPIES))
                _update_type(made[key], call.op.ty)
            planner.bindings[step] = relax.VarBinding(binding.var, Call(made[key], call.args, call.attrs, call.ty_args))
    return {new.name_hint: old.name_hint for (old, _), new in made.items()}


_Overwriting = tuple[int, int] | None
"""Which parameter of a kernel the result at another one lies over."""


def _in_place_kernels(
    module: tvm.IRModule, planners: list[_Planner]
) -> tuple[dict[tuple[GlobalVar, _Overwriting], GlobalVar], dict[str, str]]:
    """Put the kernels that write over an operand into the module.

    With one name for one memory, the promise that parameters do not overlap (`tirx.noalias`) stays true.
    """
    wanted: dict[GlobalVar, dict[_Overwriting, None]] = {}
    for planner in planners:
        for step, call in planner.calls():
            wanted.setdefault(call.op, {})[planner.overwritten.get(step)] = None
    result: dict[tuple[GlobalVar, _Overwriting], GlobalVar] = {}
    names: dict[str, str] = {}
    taken = {var.name_hint for var in module.functions}
    for var, forms in wanted.items():
        original = module[var]
        for form in sorted(forms, key=lambda f: f or ()):
            result[var, form] = var if len(forms) == 1 or form is None else GlobalVar(_free_name(var, taken))
            if form is not None:
                module.update_func(result[var, form], reading_result(original, *form))
            if result[var, form] != var:
                _update_type(result[var, form], var.ty)
                names[result[var, form].name_hint] = var.name_hint
    return result, names


def _free_name(var: GlobalVar, taken: set[str], kind: str = "in_place") -> str:
    name = next(n for i in itertools.count(1) if (n := f"{var.name_hint}_{kind}{i}") not in taken)
    taken.add(name)
    return name


class _Planner:
    """Plans one function.

    Args:
        function: the function.
        module: has its kernels.
        cut: whether what is cut out of a tensor may be a part of it.
    """

    def __init__(self, function: relax.Function, module: tvm.IRModule, *, cut: bool = True) -> None:
        self.function = function
        self.module = module
        self.cut = cut
        self.aliases = Aliases()
        self.kernels: dict[GlobalVar, Overwriting] = {}
        self.bindings = [binding for block in function.body.blocks for binding in block.bindings]
        self.roots: dict[relax.Var, frozenset[relax.Var]] = {p: frozenset([p]) for p in function.params}
        self.lives: dict[relax.Var, Life] = {}
        self.returned: frozenset[relax.Var] = _ALIASES_NOTHING
        self.places: dict[relax.Var, int] = {}
        self.slots: dict[relax.Var, int] = {}  # of the tensors that memory is taken for
        self.taken: dict[int, set[int]] = {}  # slots that a binding writes
        self.overwritten: dict[int, tuple[int, int]] = {}  # by binding: the parameters of its kernel that are one
        self.memory = Memory()

    def plan(self) -> None:
        """Fill `memory` and `overwritten`."""
        self._read()
        known = {str(v.name) for p in self.function.params for v in _symbols(p)}
        self._find_aliases(known)
        for binding in self.bindings:
            if _is_alloc(binding.value):
                self._plan_tensor(binding.var, known)
        self._plan_inputs(known)
        memory = self.memory
        if all(isinstance(slot.bytes, int) for slot in memory.slots):
            placement = place(memory.lengths({}), memory.lifetimes(), REPAIRS)
            memory.offsets, memory.bytes = list(placement.offsets), placement.bytes

    def calls(self) -> list[tuple[int, Call]]:
        """The calls of kernels, and where they stand among the bindings."""
        values = [(step, b.value) for step, b in enumerate(self.bindings) if step not in self.aliases.skipped]
        return [(step, v) for step, v in values if isinstance(v, Call) and isinstance(v.op, GlobalVar)]

    def rewritten(self, kernels: Mapping[tuple[GlobalVar, _Overwriting], GlobalVar]) -> relax.Function:
        """The function with the arena's tensors as its last parameter, and with these kernels."""
        memory = relax.Var("memory", relax.TupleType([var.ty for var in self.places]))
        replaced = {var: relax.TupleGetItem(memory, index) for index, var in enumerate(self.places)}
        called: dict[int, Call] = {}
        for step, call in self.calls():
            kernel = kernels[call.op, self.overwritten.get(step)]
            self.memory.kernels.append(kernel.name_hint)
            if kernel != call.op:
                called[step] = Call(kernel, call.args, call.attrs, call.ty_args)
        bindings = [
            relax.VarBinding(b.var, replaced[b.var] if b.var in replaced else called[step])
            if b.var in replaced or step in called
            else b
            for step, b in enumerate(self.bindings)
            if step not in self.aliases.skipped
        ]
        function = self.function
        body = relax.SeqExpr([relax.BindingBlock(bindings)], function.body.body)
        return relax.Function([*function.params, memory], body, function.ret_ty, function.is_pure, function.attrs)

    def _read(self) -> None:
        """Cases 1 and 3: what each variable refers to, and how long it is needed."""
        for step, binding in enumerate(self.bindings):
            value = binding.value
            if _is_alloc(value):
                self.roots[binding.var] = frozenset([binding.var])
                continue
            used = self._roots_of(value)
            for root in used:
                self.lives.setdefault(root, Life(step, step)).last = step
            self.roots[binding.var] = used
        self.returned = self._roots_of(self.function.body.body)

    def _roots_of(self, expr: relax.Expr) -> frozenset[relax.Var]:
        """Whatever memory an expression may refer to."""
        if isinstance(expr, relax.Var):
            return self.roots.get(expr, _ALIASES_NOTHING)
        return _ALIASES_NOTHING.union(*(self._roots_of(part) for part in parts_of(expr)))

    def _find_aliases(self, known: set[str]) -> None:
        allocated = [b.var for b in self.bindings if _is_alloc(b.value) and b.var not in self.returned]
        tensors = {var: tensor for var in allocated if var in self.lives and (tensor := _tensor(var, known))}
        sizes = {var: size for var, (_, size) in tensors.items() if isinstance(size, int)}
        self.aliases = find_aliases(self.bindings, self.module, sizes, self.lives, self._roots_of, cut=self.cut)
        # What reads a part reads the whole, too, as far as writing over it goes.
        around = {part: frozenset([part, *self.aliases.around(part)]) for part in self.aliases.wholes}
        for var, roots in self.roots.items():
            self.roots[var] = roots.union(*(around[root] for root in roots if root in around))

    def _plan_tensor(self, var: relax.Var, known: set[str]) -> None:
        tensor = _tensor(var, known)
        if var in self.returned or tensor is None or var not in self.lives:
            self.memory.complete &= tensor is not None
            if var in self.returned and tensor is not None:
                self.memory.outputs.append(tensor[1])
            return
        shape, size = tensor
        life = self.lives[var]
        whole, offset = self.aliases.place(var)
        slot = self.slots.get(whole)
        if slot is None and whole is var and var not in self.aliases.made_of_parts:
            slot = self._slot_of_dying_input(var, size)
        if slot is None:
            _, length = _tensor(whole, known) or tensor
            slot = len(self.memory.slots)
            self.memory.slots.append(Slot(length, life.first, life.last))
        self.slots[whole] = slot
        self.memory.slots[slot].last = max(self.memory.slots[slot].last, life.last)
        self.places[var] = slot
        self.taken.setdefault(life.first, set()).add(slot)
        self.memory.buffers.append(Buffer(slot, shape, str(var.ty.dtype), offset))

    def _slot_of_dying_input(self, var: relax.Var, size: Formula) -> int | None:
        """Case 2: the slot of an input of the kernel that writes the tensor, if it may be written over."""
        step = self.lives[var].first
        call = self.bindings[step].value
        if not isinstance(call, Call) or not isinstance(call.op, GlobalVar) or not isinstance(size, int):
            return None
        kernel = self.module[call.op]
        target = next(i for i, arg in enumerate(call.args) if arg.same_as(var))
        for source, arg in enumerate(call.args):
            roots = self._roots_of(arg)
            root = next(iter(roots)) if len(roots) == 1 else None
            if root is None or root not in self.places or self.lives[root].last != step or step in self.overwritten:
                continue
            if root in self.aliases.wholes:
                continue
            slot = self.places[root]
            alone = sum(root in self._roots_of(other) for other in call.args) == 1
            if (
                not alone
                or slot in self.taken.get(step, ())
                or self.memory.slots[slot].bytes != size
                or source >= len(kernel.params)
            ):
                continue
            if self.kernels.setdefault(call.op, Overwriting(kernel)).allowed(source, target):
                self.overwritten[step] = (source, target)
                return slot
        return None

    def _plan_inputs(self, known: set[str]) -> None:
        """Case 4. The tensors come first among the parameters, then the sizes and the weights."""
        for parameter in self.function.params:
            if not isinstance(parameter.ty, relax.TensorType):
                break
            tensor = _tensor(parameter, known)
            if tensor is None or parameter in self.returned or parameter not in self.lives:
                self.memory.inputs.append(-1)
                continue
            self.memory.inputs.append(len(self.memory.slots))
            self.memory.slots.append(Slot(tensor[1], 0, self.lives[parameter].last))


def _is_alloc(expr: relax.Expr) -> bool:
    return isinstance(expr, Call) and expr.op == _ALLOC


def _symbols(parameter: relax.Var) -> list[tirx.Var]:
    """The symbolic sizes that a parameter gives."""
    if not isinstance(parameter.ty, relax.ShapeType) or parameter.ty.values is None:
        return []
    return [value for value in parameter.ty.values if isinstance(value, tirx.Var)]


def _tensor(var: relax.Var, known: set[str]) -> tuple[list[Formula], Formula] | None:
    """The shape of a tensor and its bytes, if both follow from the known sizes."""
    if not isinstance(var.ty.shape, relax.ShapeExpr):
        return None
    try:
        shape = [formula(dim) for dim in var.ty.shape.values]
    except Refused:
        return None
    if not all(name in known for dim in shape for name in _names(dim)):
        return None
    width = element_type(str(var.ty.dtype)).itemsize
    numbers = [dim for dim in shape if isinstance(dim, int)]
    size: Formula = prod(numbers) * width
    for dim in shape:
        if not isinstance(dim, int):
            size = ["*", size, dim]
    return shape, size


def _names(size: Formula) -> list[str]:
    if isinstance(size, list):
        return [name for part in size[1:] for name in _names(part)]
    return [size] if isinstance(size, str) else []
