"""What follows a heavy operator element by element, so that it can be done on the register tile."""

from __future__ import annotations

from dataclasses import dataclass

import tvm_ffi
from tvm import tirx

from backends.cpu.function_chains import nested_too_deep
from backends.cpu.polynomials import expand
from backends.relax.kernel import Kernel, Stage
from backends.relax.loops import BufferStore, Expr, Stmt, TensorLoad, i64, known, loads_of, simplify, substitute

_LARGEST = 2.0**126
"""Of reciprocals: beyond it they, or what they were made of, are not normal numbers."""


@dataclass(frozen=True)
class Epilogue:
    """The element-wise tail of a heavy stage.

    Attributes:
        heavy: the heavy stage.
        tail: the stage that reads its result element by element, or `None`.
        rest: stages that cannot be done on the tile and follow afterwards.
    """

    heavy: Stage
    tail: Stage | None
    rest: tuple[Stage, ...]

    @classmethod
    def of(cls, kernel: Kernel) -> Epilogue:
        """Split a kernel whose first stage is heavy."""
        heavy, *others = kernel.stages
        alone = len(others) == 1 and _reads_in_place(others[0], heavy) and not kernel.is_output(heavy.buffer)
        if alone and not nested_too_deep(others[0].value):
            return cls(heavy, others[0], ())
        return cls(heavy, None, tuple(others))

    @property
    def trivial(self) -> bool:
        """Whether the result is stored as it is."""
        return self.tail is None

    def store(self, indices: list[Expr], value: Expr) -> Stmt:
        """Finish one element of the heavy operator and store it."""
        if self.tail is None:
            return BufferStore(self.heavy.buffer, value, indices)

        def load(node: TensorLoad) -> Expr | None:
            return value if node.source.same_as(self.heavy.buffer) else None

        point = {a.var: i64(i) for a, i in zip(self.tail.spatial, indices, strict=True)}
        finished = expand(substitute(self.tail.value, point, load))
        if str(self.heavy.buffer.dtype) == "int32":
            finished = without_divisions(finished)
        return BufferStore(self.tail.buffer, finished, indices)


def without_divisions(value: Expr) -> Expr:
    """A float32 is multiplied by the reciprocal of a constant, where it would be divided by the constant.

    Behind a sum of bytes that constant is the scale of a QuantizeLinear. The product may differ from the quotient in
    its last bit, as the sum does from one that is taken in float32; a division takes longer than all the rest.
    """

    def multiplied(node: tirx.Div) -> Expr:
        divisor = node.b.value if isinstance(node.b, tirx.Broadcast) else node.b
        if not isinstance(divisor, tirx.FloatImm) or str(divisor.expr_ty()) != "float32" or not float(divisor.value):
            return node
        reciprocal = 1.0 / float(divisor.value)
        return node.a * tirx.const(reciprocal, "float32") if abs(reciprocal) < _LARGEST else node

    return tvm_ffi.structural_map(value, (tirx.Div, multiplied))


def _reads_in_place(tail: Stage, heavy: Stage) -> bool:
    if tail.reduction or len(tail.spatial) != len(heavy.spatial):
        return False
    if any(known(simplify(a.extent - b.extent)) != 0 for a, b in zip(tail.spatial, heavy.spatial, strict=True)):
        return False
    for load in loads_of(tail.value):
        if load.source.same_as(heavy.buffer):
            for index, axis in zip(load.indices, tail.spatial, strict=True):
                if not (index.same_as(axis.var) or (known(index) == 0 and known(axis.extent) == 1)):
                    return False
    return True
