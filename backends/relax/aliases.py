"""Tensors that are a part of another one's memory, so that nothing is copied.

A kernel that only copies (`COPIES`: a Concat or a Slice along the outermost axis) need not run

* if what it joins was made for that: the pieces are then written where the whole has them;
* if what it cuts out is read where it lies.

What is returned, or is no result of a kernel (an input, a weight), is copied as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir import Call, GlobalVar

from backends.relax.packing import ALIGNMENT, element_type

__all__ = ["COPIES", "Aliases", "Life", "find_aliases"]

COPIES = "tersor.copies"
"""The attribute of such a kernel: (parameter, where from, where to, length) of each range, in elements."""


@dataclass
class Life:
    """The first and the last binding that a tensor's memory is needed for."""

    first: int
    last: int


@dataclass
class Aliases:
    """What lies in what.

    Attributes:
        wholes: for each tensor that is a part, the tensor that it lies in, and where, in bytes.
        skipped: the bindings that call a kernel that need not run.
        cuts: whether a part was cut out of a tensor that was there.
    """

    wholes: dict[relax.Var, tuple[relax.Var, int]] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    cuts: bool = False

    @property
    def made_of_parts(self) -> set[relax.Var]:
        """The tensors that others lie in."""
        return {whole for whole, _ in self.wholes.values()}

    def around(self, var: relax.Var) -> list[relax.Var]:
        """The tensors that one lies in, from the smallest on."""
        found = []
        while var in self.wholes:
            var, _ = self.wholes[var]
            found.append(var)
        return found

    def place(self, var: relax.Var) -> tuple[relax.Var, int]:
        """The tensor that the memory is taken for, and where in it this one lies."""
        offset = 0
        while var in self.wholes:
            var, further = self.wholes[var]
            offset += further
        return var, offset


def find_aliases(
    bindings: Sequence[relax.Binding],
    module: tvm.IRModule,
    sizes: Mapping[relax.Var, int],
    lives: Mapping[relax.Var, Life],
    roots_of: Callable[[relax.Expr], frozenset[relax.Var]],
    *,
    cut: bool,
) -> Aliases:
    """Find the copies that are not needed.

    Args:
        bindings: of a function.
        module: has its kernels.
        sizes: of the tensors that are planned, in bytes: others neither become a part nor have parts.
        lives: of the tensors; that of one of which another is a part becomes longer.
        roots_of: the tensors whose memory an expression refers to.
        cut: whether what is cut out may be a part, which keeps the whole alive as long.
    """
    aliases = Aliases()

    def planned(expr: relax.Expr) -> relax.Var | None:
        roots = roots_of(expr)
        root = next(iter(roots)) if len(roots) == 1 else None
        return root if root in sizes else None

    for step, binding in enumerate(bindings):
        call = binding.value
        if not isinstance(call, Call) or not isinstance(call.op, GlobalVar):
            continue
        attributes = module[call.op].attrs
        ranges = attributes.get(COPIES) if attributes else None
        if not ranges:
            continue
        copies = [[int(number) for number in each] for each in ranges]
        sources = [planned(call.args[source]) for source, *_ in copies]
        result = planned(call.args[-1])
        if result is None or None in sources or result in aliases.wholes:
            continue
        width = element_type(str(result.ty.dtype)).itemsize
        counts = [count * width for *_, count in copies]
        if any((start * width) % ALIGNMENT for copy in copies for start in copy[1:3]):
            continue
        if len(set(sources)) == len(sources) and all(
            _may_join(source, count, step, sizes, lives, aliases) for source, count in zip(sources, counts, strict=True)
        ):
            aliases.wholes.update(
                (source, (result, start * width)) for source, (_, _, start, _) in zip(sources, copies, strict=True)
            )
            aliases.skipped.add(step)
        elif cut and len(copies) == 1 and sizes[result] == counts[0]:
            (source,) = sources
            aliases.wholes[result] = source, copies[0][1] * width
            lives[source].last = max(lives[source].last, lives[result].last)
            aliases.cuts = True
            aliases.skipped.add(step)
    return aliases


def _may_join(
    source: relax.Var | None,
    count: int,
    step: int,
    sizes: Mapping[relax.Var, int],
    lives: Mapping[relax.Var, Life],
    aliases: Aliases,
) -> bool:
    """Whether a piece is all of a tensor that nobody needs after it was joined."""
    return source is not None and source not in aliases.wholes and sizes[source] == count and lives[source].last == step
