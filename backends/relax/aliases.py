"""Tensors that are a part of another one's memory, so that nothing is copied.

A kernel that only copies (`COPIES`: a Concat or a Slice along the outermost axis) need not run

* if what it joins was made for that: the pieces are then written where the whole has them;
* if what it cuts out is read where it lies.

Rows that were cut out of one tensor to be joined to others (what a strip of an image keeps for the next one) are copied
twice: if they were a part of the first tensor or of the second, those would have to be there at one time.

What is returned, or is no result of a kernel (an input, a weight), is copied as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import tvm
from tvm import relax
from tvm.ir import Call, GlobalVar

from backends.relax.packing import ALIGNMENT, element_type
from backends.relax.rest_of_join import Range

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
        rest: by binding of a join: the ranges that are still copied, as in `COPIES`.
    """

    wholes: dict[relax.Var, tuple[relax.Var, int]] = field(default_factory=dict)
    skipped: set[int] = field(default_factory=set)
    cuts: bool = False
    rest: dict[int, list[Range]] = field(default_factory=dict)

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

    found = list(_copies(bindings, module, planned))
    cut_out = {copy.result for copy in found if len(copy.ranges) == 1}
    kept_apart: set[relax.Var] = set()
    for copy in found:
        if len(copy.ranges) > 1:
            tails = [source for source in copy.sources if source in cut_out]
            if copy.joins([source for source in copy.sources if source not in tails], sizes, lives, aliases):
                kept_apart.update(tails)
                left = [each for each, source in zip(copy.ranges, copy.sources, strict=True) if source in tails]
                if left:
                    aliases.rest[copy.step] = left
                else:
                    aliases.skipped.add(copy.step)
    for copy in found:
        if len(copy.ranges) > 1 or copy.result in aliases.wholes:
            continue
        if copy.joins(copy.sources, sizes, lives, aliases):
            aliases.skipped.add(copy.step)
        elif cut and sizes[copy.result] == copy.bytes(copy.ranges[0]) and copy.result not in kept_apart:
            (source,) = copy.sources
            aliases.wholes[copy.result] = source, copy.ranges[0][1] * copy.width
            for each in (source, *aliases.around(source)):
                lives[each].last = max(lives[each].last, lives[copy.result].last)
            aliases.cuts = True
            aliases.skipped.add(copy.step)
    return aliases


@dataclass(frozen=True)
class _Copy:
    """A call of a kernel that only copies.

    Attributes:
        step: its binding.
        ranges: see `COPIES`.
        sources: what each range is copied from.
        result: what it gives.
    """

    step: int
    ranges: list[Range]
    sources: list[relax.Var]
    result: relax.Var

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return element_type(str(self.result.ty.dtype)).itemsize

    def bytes(self, copied: Range) -> int:
        """Of a range."""
        return copied[3] * self.width

    def joins(
        self,
        joined: Sequence[relax.Var],
        sizes: Mapping[relax.Var, int],
        lives: Mapping[relax.Var, Life],
        aliases: Aliases,
    ) -> bool:
        """Make these sources parts of the result, if all of them may be."""
        if not joined or len(set(joined)) != len(joined):
            return False
        pairs = [(each, source) for each, source in zip(self.ranges, self.sources, strict=True) if source in joined]
        if not all(_may_join(source, self.bytes(each), self.step, sizes, lives, aliases) for each, source in pairs):
            return False
        aliases.wholes.update((source, (self.result, each[2] * self.width)) for each, source in pairs)
        return True


def _copies(
    bindings: Sequence[relax.Binding], module: tvm.IRModule, planned: Callable[[relax.Expr], relax.Var | None]
) -> Iterator[_Copy]:
    """The calls of kernels that copy between tensors that are planned, from and to cache lines."""
    for step, binding in enumerate(bindings):
        call = binding.value
        if not isinstance(call, Call) or not isinstance(call.op, GlobalVar):
            continue
        attributes = module[call.op].attrs
        ranges = attributes.get(COPIES) if attributes else None
        copies = [(int(p), int(start), int(to), int(count)) for p, start, to, count in ranges or ()]
        sources = [planned(call.args[source]) for source, *_ in copies]
        result = planned(call.args[-1])
        real = [source for source in sources if source is not None]
        if result is None or not copies or len(real) != len(sources):
            continue
        copy = _Copy(step, copies, real, result)
        if not any((start * copy.width) % ALIGNMENT for each in copies for start in each[1:3]):
            yield copy


def _may_join(
    source: relax.Var,
    count: int,
    step: int,
    sizes: Mapping[relax.Var, int],
    lives: Mapping[relax.Var, Life],
    aliases: Aliases,
) -> bool:
    """Whether a piece is all of a tensor that nobody needs after it was joined."""
    return source not in aliases.wholes and sizes[source] == count and lives[source].last == step
