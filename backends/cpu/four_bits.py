"""The rule for products with weights of 4 bits (`backends.relax.four_bits`), which are unpacked where they are used.

A panel of the weights has W columns, and rows of words with eight codes each (`backends.relax.nibbles`). A few rows of
the other factor are multiplied with each code as it is unpacked (`FewRows`): the weights come from memory once, and
nothing else does. Up to a dozen have one tile for all of them (`SomeRows`). For more, some hundred rows of a panel are
unpacked into the first-level cache, and multiplied there with tiles of rows (`ManyRows`). Rows of int8 are multiplied
as bytes (`ByteRows`).
"""

from __future__ import annotations

from tvm import tirx

from backends.cpu.codes import CodesNest, take_apart
from backends.cpu.four_bits_bytes import ByteRows, whole_units
from backends.cpu.four_bits_few import FewRows
from backends.cpu.four_bits_many import ManyRows
from backends.cpu.four_bits_some import SomeRows, vectors_of
from backends.cpu.heavy import with_epilogue
from backends.cpu.nibble_vectors import imported
from backends.cpu.tiles import Tiles
from backends.relax.kernel import Kernel
from backends.relax.loops import IfThenElse, Stmt, i64, known
from optimizer.target import Cpu

__all__ = ["few_rows", "lower"]


def lower(kernel: Kernel, cpu: Cpu) -> Stmt | None:
    """See `backends.cpu.schedule.Rule`."""
    parts = take_apart(kernel.stages[0])
    if parts is None:
        return None
    return imported(with_epilogue(kernel, cpu, lambda epilogue: _build(CodesNest(parts, epilogue, Tiles(cpu)))))


def few_rows(cpu: Cpu) -> int:
    """The most rows that are multiplied with codes as these are unpacked: their sums fit in the registers."""
    return max(1, (cpu.vector_registers - 8) // (2 * 4))


def _build(nest: CodesNest) -> Stmt:
    unit = whole_units(nest)
    if unit is not None:
        return ByteRows(nest, unit).build()
    most, rows = few_rows(nest.cpu), known(nest.total_rows)
    if rows is not None:
        if 1 <= rows <= most:
            return FewRows(nest, rows).build()
        vectors = vectors_of(nest.tiles, rows, nest.vectors) if rows else 0
        return SomeRows(nest, rows, vectors).build() if vectors else ManyRows(nest).build()
    body = ManyRows(nest).build()
    for count in range(most, 0, -1):
        body = IfThenElse(tirx.EQ(nest.total_rows, i64(count)), FewRows(nest, count).build(), body)
    return body
